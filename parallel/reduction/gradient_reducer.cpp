#include "parallel/reduction/gradient_reducer.h"

#include <algorithm>
#include <chrono>
#include <fmt/format.h>
#include <stdexcept>

#include "kernels/device/clock.h"
#include "parallel/reduction/gradient_exchange.h"

namespace chaski {
namespace {

// A contiguous range of the gradient buffer that is sent as soon as all of its parameters are
// ready.
struct Bucket {
  Tensor gradients;
  std::int64_t num_parameters = 0;
  std::int64_t num_pending = 0;
};

constexpr std::int64_t kNoBucket = -1;

}  // namespace

struct GradientReducer::Implementation {
  Implementation(Communicator& communicator, const std::vector<int>& ranks, int stage,
                 ParameterSet& parameters, const GradientReducerOptions& options)
      : parameters(parameters) {
    if (options.bucket_bytes < 1 || options.min_buckets < 1 || options.min_buckets > kMaxBuckets) {
      throw std::invalid_argument(fmt::format(
          "gradient reduction: bucket_bytes = {}, min_buckets = {}; allowed: at least 1, "
          "1 to {}",
          options.bucket_bytes, options.min_buckets, kMaxBuckets));
    }
    if (ranks.size() < 2) return;
    lay_buckets(options);
    std::vector<Tensor> tensors;
    for (const Bucket& bucket : buckets) tensors.push_back(bucket.gradients);
    exchange = create_gradient_exchange(communicator, ranks, stage, parameters.device(),
                                        std::move(tensors));
    reset();
  }

  void lay_buckets(const GradientReducerOptions& options) {
    bucket_of.assign(static_cast<std::size_t>(parameters.size()), kNoBucket);
    std::int64_t total = 0;
    for (const Parameter& parameter : parameters) total += parameter.gradient.num_bytes();
    const std::int64_t bytes = std::max(std::min(options.bucket_bytes, total / options.min_buckets),
                                        total / kMaxBuckets + 1);
    // From the last parameter to the first, as they become ready.
    std::int64_t last = parameters.size() - 1;
    while (last >= 0) {
      std::int64_t first = last;
      std::int64_t size = parameters[first].gradient.num_bytes();
      while (first > 0) {
        const std::int64_t more = parameters[first - 1].gradient.num_bytes();
        const std::int64_t overshoot = size + more - bytes;
        if (size > 0 && overshoot > 0 && overshoot > bytes - size) break;
        size += more;
        --first;
      }
      if (size > 0) add_bucket(first, last);
      last = first - 1;
    }
  }

  // Parameters [first, last] with what lies between them; frozen ones have no gradient.
  void add_bucket(std::int64_t first, std::int64_t last) {
    Bucket bucket;
    char* begin = nullptr;
    char* end = nullptr;
    for (std::int64_t i = first; i <= last; ++i) {
      const Tensor& gradient = parameters[i].gradient;
      if (gradient.empty()) continue;
      char* const data = static_cast<char*>(gradient.raw());
      if (begin == nullptr) begin = data;
      if (data < end) {
        throw std::logic_error("gradients are not in the order of the parameters: " +
                               parameters[i].name);
      }
      end = data + gradient.num_bytes();
      bucket_of[static_cast<std::size_t>(i)] = std::ssize(buckets);
      ++bucket.num_parameters;
    }
    const DType type = parameters.types().gradients;
    bucket.gradients = Tensor(parameters.device(), type, {(end - begin) / size_of(type)}, begin);
    buckets.push_back(bucket);
  }

  void reset() {
    for (Bucket& bucket : buckets) bucket.num_pending = bucket.num_parameters;
    announced.assign(static_cast<std::size_t>(parameters.size()), false);
    num_started = 0;
  }

  void ready(std::int64_t first, std::int64_t count) {
    if (first < 0 || count < 0 || first + count > parameters.size()) {
      throw std::logic_error(fmt::format("gradients of parameters {} to {} of {}", first,
                                         first + count - 1, parameters.size()));
    }
    for (std::int64_t i = first; i < first + count; ++i) {
      const std::int64_t bucket = bucket_of[static_cast<std::size_t>(i)];
      if (bucket == kNoBucket) continue;
      if (announced[static_cast<std::size_t>(i)]) {
        throw std::logic_error("the gradient was ready before: " + parameters[i].name);
      }
      announced[static_cast<std::size_t>(i)] = true;
      --buckets[static_cast<std::size_t>(bucket)].num_pending;
    }
    // In one order on all ranks, whatever the order of the announcements.
    while (num_started < std::ssize(buckets) &&
           buckets[static_cast<std::size_t>(num_started)].num_pending == 0) {
      ++num_started;
    }
    exchange->start(num_started);
    exchange->advance();
  }

  void finish() {
    num_started = std::ssize(buckets);
    exchange->start(num_started);
    // What a GPU still computes is no waiting for others.
    parameters.device().synchronize();
    const auto begin = std::chrono::steady_clock::now();
    exchange->finish();
    reset();
    wait_seconds = seconds_since(begin);
  }

  ParameterSet& parameters;
  std::unique_ptr<GradientExchange> exchange;  // none with one rank
  std::vector<Bucket> buckets;                 // in the order in which they are started
  std::vector<std::int64_t> bucket_of;         // by parameter
  std::vector<bool> announced;                 // by parameter
  std::int64_t num_started = 0;
  double wait_seconds = 0;
};

GradientReducer::GradientReducer(Communicator& communicator, const std::vector<int>& ranks,
                                 int stage, ParameterSet& parameters,
                                 const GradientReducerOptions& options)
    : implementation_(
          std::make_unique<Implementation>(communicator, ranks, stage, parameters, options)) {}

GradientReducer::~GradientReducer() = default;

void GradientReducer::gradients_ready(std::int64_t first, std::int64_t count) {
  if (implementation_->exchange) implementation_->ready(first, count);
}

void GradientReducer::finish() {
  if (implementation_->exchange) implementation_->finish();
}

void GradientReducer::abort() noexcept {
  if (implementation_->exchange) implementation_->exchange->abort();
}

std::int64_t GradientReducer::num_buckets() const {
  return std::ssize(implementation_->buckets);
}

std::int64_t GradientReducer::bytes_per_step() const {
  return implementation_->exchange ? implementation_->exchange->bytes_per_round() : 0;
}

double GradientReducer::last_wait_seconds() const {
  return implementation_->wait_seconds;
}

}  // namespace chaski
