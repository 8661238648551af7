#include "kernels/moc/products_cpu.h"

#include <omp.h>

#include "kernels/moc/lists.h"
#include "kernels/moc/panels.h"

namespace chaski {
namespace CHASKI_ISA_NAMESPACE {
namespace {

// ---- Products ------------------------------------------------------------------------------

// The columns of rows [tokens, hidden] that fill no panel, as one.
std::int64_t last_columns_floats(const MocProductsProblem& p) {
  return p.hidden % kWidth == 0 ? 0 : p.tokens * kWidth;
}

// dots: of each entry, rows [tokens, hidden] of its token times the row of `weight` of its channel
// ([size, hidden], or transposed). last_columns: [last_columns_floats].
void write_dots(const MocProductsProblem& p, const ByToken& lists, const float* rows,
                const float* weight, bool transposed, float* last_columns, const Own& own,
                float* dots) {
  if (last_columns_floats(p) > 0) {
    const Columns columns = columns_of(p.hidden, num_hidden_blocks(p) - 1);
#pragma omp for schedule(static)
    for (std::int64_t t = 0; t < p.tokens; ++t)
      pack(rows, p.hidden, t, 1, columns, last_columns + t * kWidth);
  }
  for (std::int64_t h = 0; h < num_hidden_blocks(p); ++h) {
    const Columns columns = columns_of(p.hidden, h);
    const bool whole = columns.count == kWidth;
    const float* operand = whole ? rows + columns.first : last_columns;
    // A chunk's dot products are summed by the same thread in all rounds: no need to wait.
#pragma omp for schedule(static, 1) nowait
    for (std::int64_t c = 0; c < num_channel_chunks(p); ++c) {
      const std::int64_t first = c * kChunk;
      const std::int64_t count = smaller(kChunk, p.size - first);
      const std::int32_t* begin = lists.begin + c * (p.tokens + 1);
      if (h == 0) clear(dots + begin[0], begin[p.tokens] - begin[0]);
      transposed ? pack_transposed(weight, p.size, first, count, columns, own.panel)
                 : pack(weight, p.hidden, first, count, columns, own.panel);
      add_dots({p.tokens, begin, lists.channels}, operand, whole ? p.hidden : kWidth, own.panel,
               own.pending, dots);
    }
  }
#pragma omp barrier
}

// Of the entries: a factor each, for the row of `weight` of its channel.
struct Scaled {
  const float* values;
  const float* weight;  // [size, hidden], or transposed
  bool transposed;
};

// Rows that are summed together, where there are `others` to do of each: enough to pay for packing
// what they are sums of, few enough for all threads to have work. The sums are the same for any
// number.
std::int64_t rows_at_a_time(std::int64_t rows, std::int64_t others, int threads) {
  constexpr std::int64_t kFewest = 128;
  constexpr std::int64_t kUnit = 16;
  const std::int64_t for_cache = blocks_of(rows, kRows);
  const std::int64_t for_threads = blocks_of(3 * threads, others);
  const std::int64_t pieces = for_cache > for_threads ? for_cache : for_threads;
  const std::int64_t piece = blocks_of(blocks_of(rows, pieces), kUnit) * kUnit;
  return piece < kFewest ? kFewest : piece;
}

// out [tokens, hidden]: the sum over a token's entries and over `scaled`, of which there are
// `num_scaled`.
void write_sums(const MocProductsProblem& p, const ByToken& lists, const Scaled* scaled,
                int num_scaled, const Own& own, float* out) {
  const std::int64_t piece = rows_at_a_time(p.tokens, num_hidden_blocks(p), p.threads);
  const std::int64_t pieces = blocks_of(p.tokens, piece);
#pragma omp for schedule(dynamic)
  for (std::int64_t task = 0; task < pieces * num_hidden_blocks(p); ++task) {
    const Columns columns = columns_of(p.hidden, task / pieces);
    const std::int64_t token = task % pieces * piece;
    const std::int64_t tokens = smaller(piece, p.tokens - token);
    clear(own.sums, tokens * kWidth);
    for (std::int64_t c = 0; c < num_channel_chunks(p); ++c) {
      const std::int64_t first = c * kChunk;
      const std::int64_t count = smaller(kChunk, p.size - first);
      const std::int32_t* begin = lists.begin + c * (p.tokens + 1) + token;
      for (int i = 0; i < num_scaled; ++i) {
        scaled[i].transposed
            ? pack_transposed(scaled[i].weight, p.size, first, count, columns, own.panel)
            : pack(scaled[i].weight, p.hidden, first, count, columns, own.panel);
        add_scaled({tokens, begin, lists.channels}, scaled[i].values, own.panel, own.sums);
      }
    }
    store(own.sums, p.hidden, token, tokens, columns, out);
  }
}

// A weight's gradient: of each entry, a value times `rows` [tokens, hidden] of its token.
struct WeightGradient {
  const float* values;
  const float* rows;
  float* gradient;  // [size, hidden], or transposed
  bool transposed;
};

void add_weight_gradients(const MocProductsProblem& p, const ByChannel& lists,
                          const WeightGradient* gradients, int num_gradients, const Own& own) {
  const std::int64_t others = num_hidden_blocks(p) * num_gradients;
  const std::int64_t piece = rows_at_a_time(p.size, others, p.threads);
  const std::int64_t pieces = blocks_of(p.size, piece);
  const std::int64_t tasks = pieces * num_hidden_blocks(p);
#pragma omp for schedule(dynamic)
  for (std::int64_t task = 0; task < tasks * num_gradients; ++task) {
    const WeightGradient& g = gradients[task / tasks];
    const Columns columns = columns_of(p.hidden, task % tasks / pieces);
    const std::int64_t channel = task % pieces * piece;
    const std::int64_t channels = smaller(piece, p.size - channel);
    clear(own.sums, channels * kWidth);
    for (std::int64_t c = 0; c < num_token_chunks(p); ++c) {
      const std::int64_t token = c * kChunk;
      pack(g.rows, p.hidden, token, smaller(kChunk, p.tokens - token), columns, own.panel);
      const std::int32_t* begin = lists.begin + c * (p.size + 1) + channel;
      add_scaled({channels, begin, lists.tokens}, g.values, own.panel, own.sums);
    }
    g.transposed ? add_transposed(own.sums, p.size, channel, channels, columns, g.gradient)
                 : add(own.sums, p.hidden, channel, channels, columns, g.gradient);
  }
}

// ---- Passes --------------------------------------------------------------------------------

struct Forward {
  ByToken lists;
  float* gate;  // by token; becomes SiLU(gate)
  float* up;    // becomes the product
  float* last_columns;
  Own own;
};

Forward take_forward(const MocProductsProblem& p, Scratch& scratch, int thread) {
  Forward pass{};
  pass.lists = take_by_token(p, scratch);
  pass.gate = take_entries<float>(p, scratch);
  pass.up = take_entries<float>(p, scratch);
  pass.last_columns = scratch.take<float>(last_columns_floats(p));
  for (int i = 0; i <= thread; ++i) pass.own = take_own(p, scratch);
  return pass;
}

std::int64_t forward_scratch_floats(const MocProductsProblem& p) {
  Scratch scratch{nullptr};
  take_forward(p, scratch, p.threads - 1);
  return scratch.floats;
}

void activate(std::int64_t entries, float* gate, float* up) {
#pragma omp for simd schedule(static)
  for (std::int64_t e = 0; e < entries; ++e) {
    const float silu = gate[e] * sigmoid_of(gate[e]);
    gate[e] = silu;
    up[e] = silu * up[e];
  }
}

void forward(const MocProductsProblem& p, const float* x, const MocProductsWeights& weights,
             const MocRows& kept, float* out, float* memory) {
#pragma omp parallel num_threads(p.threads)
  {
    Scratch scratch{memory};
    const Forward pass = take_forward(p, scratch, omp_get_thread_num());
    place_by_token(p, kept.index, pass.own, pass.lists);
    scatter(p, kept.index, pass.own, pass.lists, {kept.gate, pass.gate}, {nullptr, nullptr});
    write_dots(p, pass.lists, x, weights.up, false, pass.last_columns, pass.own, pass.up);
    gather(p, pass.lists, pass.up, kept.up);
    if (out != nullptr || kept.silu != nullptr || kept.product != nullptr)
      activate(p.tokens * p.keep, pass.gate, pass.up);
    if (kept.silu != nullptr) gather(p, pass.lists, pass.gate, kept.silu);
    if (kept.product != nullptr) gather(p, pass.lists, pass.up, kept.product);
    const Scaled down = {pass.up, weights.down, true};
    if (out != nullptr) write_sums(p, pass.lists, &down, 1, pass.own, out);
  }
}

struct Backward {
  ByToken lists;
  ByChannel by_channel;
  float* dproduct;  // by token; becomes the product
  float* gate;      // becomes its gradient
  float* up;        // becomes its gradient
  float* last_columns;
  Own own;
};

Backward take_backward(const MocProductsProblem& p, Scratch& scratch, int thread) {
  Backward pass{};
  pass.lists = take_by_token(p, scratch);
  pass.by_channel = take_by_channel(p, scratch);
  pass.dproduct = take_entries<float>(p, scratch);
  pass.gate = take_entries<float>(p, scratch);
  pass.up = take_entries<float>(p, scratch);
  pass.last_columns = scratch.take<float>(last_columns_floats(p));
  for (int i = 0; i <= thread; ++i) pass.own = take_own(p, scratch);
  return pass;
}

std::int64_t backward_scratch_floats(const MocProductsProblem& p) {
  Scratch scratch{nullptr};
  take_backward(p, scratch, p.threads - 1);
  return scratch.floats;
}

void differentiate(std::int64_t entries, float* dproduct, float* gate, float* up) {
#pragma omp for simd schedule(static)
  for (std::int64_t e = 0; e < entries; ++e) {
    const float d = dproduct[e];
    const float sigmoid = sigmoid_of(gate[e]);
    const float silu = gate[e] * sigmoid;
    dproduct[e] = silu * up[e];
    gate[e] = d * up[e] * (sigmoid + silu * (1.0f - sigmoid));
    up[e] = d * silu;
  }
}

void backward(const MocProductsProblem& p, const float* dout, const float* x,
              const MocProductsWeights& weights, const MocRows& kept,
              const MocProductsGradients& gradients, float* dx, float* memory) {
#pragma omp parallel num_threads(p.threads)
  {
    Scratch scratch{memory};
    const Backward pass = take_backward(p, scratch, omp_get_thread_num());
    place_by_token(p, kept.index, pass.own, pass.lists);
    scatter(p, kept.index, pass.own, pass.lists, {kept.gate, pass.gate}, {kept.up, pass.up});
    write_dots(p, pass.lists, dout, weights.down, true, pass.last_columns, pass.own, pass.dproduct);
    differentiate(p.tokens * p.keep, pass.dproduct, pass.gate, pass.up);

    const auto& values = pass.by_channel.values;
    WeightGradient wanted[ByChannel::kValues];
    int count = 0;
    if (gradients.down != nullptr) wanted[count++] = {values[0], dout, gradients.down, true};
    if (gradients.gate != nullptr) wanted[count++] = {values[1], x, gradients.gate, false};
    if (gradients.up != nullptr) wanted[count++] = {values[2], x, gradients.up, false};
    if (count > 0) {
#pragma omp for schedule(static)
      for (std::int64_t chunk = 0; chunk < num_token_chunks(p); ++chunk)
        turn(p, pass.lists, chunk, pass.own, {pass.dproduct, pass.gate, pass.up}, pass.by_channel);
      // x is read before dx, which may be x, is written.
      add_weight_gradients(p, pass.by_channel, wanted, count, pass.own);
    }
    const Scaled input[] = {{pass.gate, weights.gate, false}, {pass.up, weights.up, false}};
    write_sums(p, pass.lists, input, 2, pass.own, dx);
  }
}

}  // namespace

const MocProductsKernels moc_products_kernels = {kWidth, forward_scratch_floats,
                                                 backward_scratch_floats, forward, backward};

}  // namespace CHASKI_ISA_NAMESPACE
}  // namespace chaski
