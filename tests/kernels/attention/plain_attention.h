#pragma once

#include "kernels/attention/attention.h"
#include "tests/kernels/devices.h"

namespace chaski::test {

using Positions = std::vector<std::int32_t>;

// The textbook computation in double, one row of scores at a time.
class PlainAttention {
 public:
  PlainAttention(const AttentionShape& shape, const Positions& positions)
      : shape_(shape), positions_(positions) {}

  struct Result {
    Reference out;
    Reference log_sum_exp;
  };

  Result forward(const Reference& qkv) const {
    Result result{Reference(shape_.num_tokens() * shape_.query_size()),
                  Reference(shape_.num_tokens() * shape_.num_heads)};
    for_each_query([&](std::int64_t b, std::int64_t h, std::int64_t i) {
      double& log_sum_exp =
          result.log_sum_exp[(b * shape_.num_heads + h) * shape_.sequence_length + i];
      const Reference weights = row_weights(qkv, b, h, i, &log_sum_exp);
      for (std::int64_t j = first(b, i); j <= i; ++j) {
        for (std::int64_t e = 0; e < shape_.head_dim; ++e)
          result.out[out_index(b, h, i) + e] += weights[j] * qkv[value_index(b, h, j) + e];
      }
    });
    return result;
  }

  Reference backward(const Reference& qkv, const Reference& dout) const {
    Reference dqkv(qkv.size());
    for_each_query([&](std::int64_t b, std::int64_t h, std::int64_t i) {
      double unused;
      const Reference weights = row_weights(qkv, b, h, i, &unused);
      const double* dout_row = &dout[out_index(b, h, i)];
      Reference dweights(shape_.sequence_length);
      double mean = 0.0;
      for (std::int64_t j = first(b, i); j <= i; ++j) {
        for (std::int64_t e = 0; e < shape_.head_dim; ++e) {
          dweights[j] += dout_row[e] * qkv[value_index(b, h, j) + e];
          dqkv[value_index(b, h, j) + e] += weights[j] * dout_row[e];
        }
        mean += weights[j] * dweights[j];
      }
      for (std::int64_t j = first(b, i); j <= i; ++j) {
        const double dscore = weights[j] * (dweights[j] - mean) * scale();
        for (std::int64_t e = 0; e < shape_.head_dim; ++e) {
          dqkv[query_index(b, h, i) + e] += dscore * qkv[key_index(b, h, j) + e];
          dqkv[key_index(b, h, j) + e] += dscore * qkv[query_index(b, h, i) + e];
        }
      }
    });
    return dqkv;
  }

 private:
  template <typename F>
  void for_each_query(F f) const {
    for (std::int64_t b = 0; b < shape_.batch; ++b) {
      for (std::int64_t h = 0; h < shape_.num_heads; ++h) {
        for (std::int64_t i = 0; i < shape_.sequence_length; ++i) f(b, h, i);
      }
    }
  }
  Reference row_weights(const Reference& qkv, std::int64_t b, std::int64_t h, std::int64_t i,
                        double* log_sum_exp) const {
    Reference scores(shape_.sequence_length);
    double largest = -INFINITY;
    for (std::int64_t j = first(b, i); j <= i; ++j) {
      for (std::int64_t e = 0; e < shape_.head_dim; ++e)
        scores[j] += qkv[query_index(b, h, i) + e] * qkv[key_index(b, h, j) + e] * scale();
      largest = std::max(largest, scores[j]);
    }
    double total = 0.0;
    for (std::int64_t j = first(b, i); j <= i; ++j) total += std::exp(scores[j] - largest);
    *log_sum_exp = largest + std::log(total);
    for (double& score : scores) score = std::exp(score - *log_sum_exp);
    return scores;
  }
  std::int64_t first(std::int64_t b, std::int64_t i) const {
    return positions_.empty() ? 0 : std::max<std::int64_t>(0, i - positions_[token(b, i)]);
  }
  double scale() const { return 1.0 / std::sqrt(static_cast<double>(shape_.head_dim)); }
  std::int64_t token(std::int64_t b, std::int64_t i) const {
    return b * shape_.sequence_length + i;
  }
  std::int64_t query_index(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return token(b, i) * shape_.qkv_size() + h * shape_.head_dim;
  }
  std::int64_t key_index(std::int64_t b, std::int64_t h, std::int64_t j) const {
    const std::int64_t kv_head = h / (shape_.num_heads / shape_.num_kv_heads);
    return token(b, j) * shape_.qkv_size() + shape_.query_size() + kv_head * shape_.head_dim;
  }
  std::int64_t value_index(std::int64_t b, std::int64_t h, std::int64_t j) const {
    return key_index(b, h, j) + shape_.kv_size();
  }
  std::int64_t out_index(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return token(b, i) * shape_.query_size() + h * shape_.head_dim;
  }

  AttentionShape shape_;
  Positions positions_;
};

}  // namespace chaski::test
