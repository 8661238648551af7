#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "model/llama_config.h"
#include "tests/kernels/devices.h"

// The FFN of one block in double, all channels at once: S = SiLU(G) ⊙ M, Z = S ⊙ U, with the mask M
// a constant. Knows nothing of how channels are stored, packed or taken in tiles.
namespace chaski::test {

// [tokens · channels]: whether the token uses the channel.
using Mask = std::vector<bool>;

inline double sigmoid_of(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}
inline double silu_of(double x) {
  return x * sigmoid_of(x);
}

// c [m, n] = a [m, k] · bᵀ, b [n, k].
inline Reference multiply_transposed(const Reference& a, const Reference& b, std::size_t k) {
  const std::size_t m = a.size() / k;
  const std::size_t n = b.size() / k;
  Reference c(m * n, 0.0);
  for (std::size_t i = 0; i < m; ++i)
    for (std::size_t j = 0; j < n; ++j)
      for (std::size_t l = 0; l < k; ++l) c[i * n + j] += a[i * k + l] * b[j * k + l];
  return c;
}

inline Reference transposed(const Reference& a, std::size_t columns) {
  const std::size_t rows = a.size() / columns;
  Reference result(a.size());
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < columns; ++j) result[j * rows + i] = a[i * columns + j];
  return result;
}

// c [m, n] = a [m, k] · b [k, n].
inline Reference multiply(const Reference& a, const Reference& b, std::size_t k) {
  return multiply_transposed(a, transposed(b, b.size() / k), k);
}

// A channel is kept where fewer than the wanted number of its group come before it, by score, then
// by index.
inline Mask select_channels(const MocConfig& moc, const Reference& gates, std::size_t channels) {
  const auto score = [&](std::size_t i) {
    return moc.score == MocScore::gate ? gates[i] : std::abs(silu_of(gates[i]));
  };
  Mask mask(gates.size());
  for (std::size_t i = 0; i < gates.size(); ++i) {
    const std::size_t row = i / channels * channels;
    const bool grouped = moc.pattern == MocPattern::two_of_eight;
    const std::size_t begin = grouped ? row + (i - row) / 8 * 8 : row;
    const std::size_t end = grouped ? std::min(begin + 8, row + channels) : row + channels;
    std::int64_t before = 0;
    for (std::size_t j = begin; j < end; ++j)
      before += score(j) > score(i) || (score(j) == score(i) && j < i);
    mask[i] = before < (grouped ? 2 : moc.keep);
  }
  return mask;
}

// The least distance between a kept gate and a dropped one of the same token.
inline double smallest_margin(const Reference& gates, const Mask& mask, std::size_t channels) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  double margin = kInfinity;
  for (std::size_t row = 0; row < gates.size(); row += channels) {
    double kept = kInfinity;
    double dropped = -kInfinity;
    for (std::size_t i = row; i < row + channels; ++i)
      mask[i] ? kept = std::min(kept, gates[i]) : dropped = std::max(dropped, gates[i]);
    margin = std::min(margin, kept - dropped);
  }
  return margin;
}

// Root mean square norm of rows of `weight.size()`.
inline Reference normalize(const Reference& input, const Reference& weight, double epsilon) {
  const std::size_t size = weight.size();
  Reference result(input.size());
  for (std::size_t row = 0; row < input.size(); row += size) {
    double squares = 0.0;
    for (std::size_t i = 0; i < size; ++i) squares += input[row + i] * input[row + i];
    const double scale = 1.0 / std::sqrt(squares / static_cast<double>(size) + epsilon);
    for (std::size_t i = 0; i < size; ++i) result[row + i] = input[row + i] * scale * weight[i];
  }
  return result;
}

struct FfnReference {
  double epsilon = 1e-6;
  Reference norm;  // [hidden]
  Reference gate;  // [channels, hidden]
  Reference up;    // [channels, hidden]
  Reference down;  // [hidden, channels]

  struct Gradients {
    Reference input, norm, gate, up, down;
  };

  std::size_t hidden() const { return norm.size(); }
  std::size_t channels() const { return gate.size() / norm.size(); }

  Reference gates(const Reference& input) const {
    return multiply_transposed(normalize(input, norm, epsilon), gate, hidden());
  }

  Reference output(const Reference& input, const Mask& mask) const {
    const Reference x = normalize(input, norm, epsilon);
    const Reference g = multiply_transposed(x, gate, hidden());
    Reference z = multiply_transposed(x, up, hidden());
    for (std::size_t i = 0; i < z.size(); ++i) z[i] *= mask[i] ? silu_of(g[i]) : 0.0;
    return multiply_transposed(z, down, channels());
  }

  // Of input + output, given the gradient of that.
  Gradients backward(const Reference& input, const Mask& mask, const Reference& dout) const {
    const std::size_t d = hidden();
    const std::size_t f = channels();
    const std::size_t tokens = input.size() / d;
    const Reference x = normalize(input, norm, epsilon);
    const Reference g = multiply_transposed(x, gate, d);
    const Reference u = multiply_transposed(x, up, d);
    const Reference dz = multiply(dout, down, d);
    Reference z(g.size()), dg(g.size()), du(g.size());
    for (std::size_t i = 0; i < g.size(); ++i) {
      const double mask_value = mask[i] ? 1.0 : 0.0;
      const double s = silu_of(g[i]) * mask_value;
      z[i] = s * u[i];
      du[i] = dz[i] * s;
      dg[i] = dz[i] * u[i] * mask_value * (sigmoid_of(g[i]) + silu_of(g[i]) * sigmoid_of(-g[i]));
    }
    Gradients result;
    result.down = multiply(transposed(dout, d), z, tokens);
    result.gate = multiply(transposed(dg, f), x, tokens);
    result.up = multiply(transposed(du, f), x, tokens);
    Reference dx = multiply(dg, gate, f);
    const Reference through_up = multiply(du, up, f);
    for (std::size_t i = 0; i < dx.size(); ++i) dx[i] += through_up[i];
    result.input = dout;
    result.norm.assign(d, 0.0);
    for (std::size_t row = 0; row < input.size(); row += d) norm_backward(input, dx, row, result);
    return result;
  }

 private:
  // y_i = x_i · w_i · r, r = (mean(x²) + ε)^(-1/2), dr/dx_j = -r³ · x_j / d.
  void norm_backward(const Reference& input, const Reference& dy, std::size_t row,
                     Gradients& gradients) const {
    const auto size = static_cast<double>(hidden());
    double squares = 0.0;
    double projected = 0.0;
    for (std::size_t i = 0; i < hidden(); ++i) {
      squares += input[row + i] * input[row + i];
      projected += dy[row + i] * norm[i] * input[row + i];
    }
    const double r = std::pow(squares / size + epsilon, -0.5);
    for (std::size_t i = 0; i < hidden(); ++i) {
      gradients.norm[i] += dy[row + i] * input[row + i] * r;
      gradients.input[row + i] +=
          dy[row + i] * norm[i] * r - r * r * r * input[row + i] / size * projected;
    }
  }
};

}  // namespace chaski::test
