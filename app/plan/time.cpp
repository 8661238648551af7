#include "app/plan/time.h"

#include <algorithm>
#include <chrono>
#include <functional>

#include "app/plan/gemm_ceiling.h"
#include "app/plan/step_gemms.h"
#include "kernels/attention/attention.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/measuring/timer.h"
#include "kernels/moc/products.h"
#include "model/ffn.h"
#include "model/precision.h"
#include "parallel/membership/message_tags.h"
#include "parallel/pipeline/schedule.h"

namespace chaski {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kSecondsPerOp = 0.05;
// A product of so many operations is long enough to be measured well.
double enough_flops(const Device& device) {
  return device.backend() == Backend::cpu ? 7e9 : 1.3e12;
}

// The median of some runs, after one that warms up.
double seconds_of(Device& device, const std::function<void()>& work) {
  DeviceTimer timer(device);
  work();
  std::vector<double> seconds;
  const auto start = Clock::now();
  do {
    timer.start();
    work();
    seconds.push_back(timer.stop());
  } while (seconds_since(start) < kSecondsPerOp);
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return seconds[seconds.size() / 2];
}

// The operands change from run to run, but stay finite for as long as this takes.
double measure_product(Device& device, const TensorTypes& types, const StepGemm& gemm) {
  Workspace::Frame frame(device);
  const auto shapes = gemm.shapes();
  const auto dtypes = gemm.types(types);
  const auto tensor = [&](std::size_t i) { return frame.tensor(dtypes[i], shapes[i]); };
  const Tensor a = tensor(0), b = tensor(1), out = tensor(2);
  fill_normal(a, 0.0f, 1.0f, 1, 1);
  fill_normal(b, 0.0f, 1e-3f, 1, 2);
  fill(out, 0.0f);
  return seconds_of(device, [&] { gemm.run(a, b, out); });
}

// Of fewer tokens where these are enough.
double measure_gemm(Device& device, const TrainConfig& config) {
  const std::int64_t tokens = passes_of(config).rows * config.data.sequence_length;
  double flops = 0.0;
  double seconds = 0.0;
  for (StepGemm gemm : step_gemms(config.model.llama, tokens, device.backend())) {
    const double share = std::min(1.0, enough_flops(device) / gemm.flops());
    const auto rows = static_cast<std::int64_t>(share * static_cast<double>(gemm.rows()));
    gemm.rows() = std::max(rows, std::min<std::int64_t>(gemm.rows(), 64));
    seconds += gemm.count * measure_product(device, types_of(precision_of(config)), gemm);
    flops += gemm.count * gemm.flops();
  }
  return flops / seconds;
}

// As the FFN of a block makes them, with their selection.
double measure_channels(Device& device, const TrainConfig& config) {
  const LlamaConfig& model = config.model.llama;
  // No fewer than a neighbour of the config may have.
  constexpr std::int64_t kFewest = 64;
  const std::int64_t tokens = std::max(
      kFewest, ffn_tile(device.backend(), passes_of(config).rows * config.data.sequence_length));
  const std::int64_t hidden = model.hidden_size;
  const std::int64_t size = model.intermediate_size;
  const MocShape shape = moc_shape(model, config.model.moc_index());
  if (!moc_products_pay(device, shape, hidden, tokens)) return 0.0;
  Workspace::Frame frame(device);
  const auto weights = [&] {
    return MocWeights{frame.f32({size, hidden}), frame.f32({size, hidden}),
                      frame.f32({hidden, size})};
  };
  const Tensor x = frame.f32({tokens, hidden});
  const Tensor out = frame.f32({tokens, hidden});
  const Tensor gates = frame.f32({tokens, size});
  const MocWeights weight = weights();
  const MocWeights gradient = weights();
  const Tensor index = frame.tensor(DType::u8, {tokens, shape.index_bytes()});
  const MocKept kept{
      frame.f32({tokens, shape.keep}), frame.f32({tokens, shape.keep}), {}, {}, index};
  std::uint64_t stream = 0;
  for (const Tensor* tensor : {&x, &gates, &weight.gate, &weight.up, &weight.down})
    fill_normal(*tensor, 0.0f, 1.0f, 1, ++stream);
  for (const Tensor* tensor : {&gradient.gate, &gradient.up, &gradient.down}) fill(*tensor, 0.0f);
  double seconds =
      seconds_of(device, [&] { moc_products_forward(shape, x, gates, weight, kept, out); });
  fill_normal(out, 0.0f, 1e-3f, 1, ++stream);
  const Tensor dx = frame.f32({tokens, hidden});
  seconds +=
      seconds_of(device, [&] { moc_products_backward(shape, out, x, weight, kept, gradient, dx); });
  return 16.0 * static_cast<double>(tokens) * static_cast<double>(hidden) *
         static_cast<double>(shape.keep) / seconds;
}

void measure_attention(Device& device, const TrainConfig& config, MachineRates& rates) {
  const LlamaConfig& model = config.model.llama;
  const AttentionShape shape{passes_of(config).rows, config.data.sequence_length, model.num_heads,
                             model.num_kv_heads, model.head_dim};
  const std::int64_t tokens = shape.num_tokens();
  const DType type = types_of(precision_of(config)).compute;
  Workspace::Frame frame(device);
  const Tensor qkv = frame.tensor(type, {tokens, shape.qkv_size()});
  const Tensor out = frame.tensor(type, {tokens, shape.query_size()});
  const Tensor log_sum_exp = frame.f32({tokens * shape.num_heads});
  const Tensor dqkv = frame.tensor(type, {tokens, shape.qkv_size()});
  fill_normal(qkv, 0.0f, 1.0f, 1, 1);
  // As the ops count themselves: multiply-adds of the causal half, two and five products.
  const double products = static_cast<double>(tokens) * static_cast<double>(shape.query_size()) *
                          0.5 * static_cast<double>(shape.sequence_length + 1);
  rates.attention_forward = 4.0 * products / seconds_of(device, [&] {
                              attention_forward(shape, qkv, {}, out, log_sum_exp);
                            });
  rates.attention_backward = 10.0 * products / seconds_of(device, [&] {
                               attention_backward(shape, qkv, {}, out, log_sum_exp, out, dqkv);
                             });
}

double measure_copy(Device& device) {
  // Far larger than the caches.
  constexpr std::int64_t kElementsOnCpu = std::int64_t{16} << 20;
  constexpr std::int64_t kTimesCache = 8;
  const std::int64_t cache = device_properties(device).cache_bytes;
  const std::int64_t elements =
      cache > 0 ? kTimesCache * cache / size_of(DType::f32) : kElementsOnCpu;
  Workspace::Frame frame(device);
  const Tensor from = frame.f32({elements});
  const Tensor to = frame.f32({elements});
  fill(from, 1.0f);
  return 2.0 * static_cast<double>(from.num_bytes()) / seconds_of(device, [&] { copy(from, to); });
}

// A process's own rates among `processes` on this machine, each with `threads`.
MachineRates share_of(const MachineRates& rates, int threads, std::size_t processes) {
  const double cores = static_cast<double>(threads) / rates.threads;
  MachineRates own = rates;
  own.threads = threads;
  own.gemm_ceiling *= cores;
  own.gemm *= cores;
  own.channels *= cores;
  own.attention_forward *= cores;
  own.attention_backward *= cores;
  own.copy /= static_cast<double>(processes);
  return own;
}

double attention_seconds(const MachineRates& rates, const Work& work) {
  return work.attention_forward_flops / rates.attention_forward +
         work.attention_backward_flops / rates.attention_backward;
}

double product_seconds(const MachineRates& rates, const Work& work) {
  const double channels = work.channel_flops == 0.0 ? 0.0 : work.channel_flops / rates.channels;
  return work.gemm_flops / rates.gemm + channels;
}

double seconds_for(const MachineRates& rates, const Work& work) {
  return product_seconds(rates, work) + attention_seconds(rates, work) +
         work.traffic_bytes / rates.copy;
}

}  // namespace

MachineRates measure_rates(const std::function<std::unique_ptr<Device>()>& create_device,
                           const TrainConfig& config) {
  MachineRates rates;
  const DType type = types_of(precision_of(config)).compute;
  rates.threads = create_device()->num_threads();
  rates.gemm_ceiling = 1e9 * measure_gemm_ceiling(*create_device(), type);
  rates.gemm = measure_gemm(*create_device(), config);
  if (config.model.llama.moc) rates.channels = measure_channels(*create_device(), config);
  measure_attention(*create_device(), config, rates);
  rates.copy = measure_copy(*create_device());
  rates.gemm_ceiling = std::max(rates.gemm_ceiling, rates.gemm);
  return rates;
}

MachineRates rates_from(double gemm, double copy) {
  MachineRates rates;
  rates.gemm_ceiling = rates.gemm = rates.channels = gemm;
  rates.attention_forward = rates.attention_backward = gemm;
  rates.copy = copy;
  return rates;
}

StepTime predict_step(const MachineRates& rates, const TrainConfig& config,
                      const std::vector<RankMemory>& ranks, int threads) {
  const RunLayout layout = resolve_layout(config, static_cast<std::int64_t>(ranks.size()));
  const MachineRates own = is_on_gpu(config) ? rates : share_of(rates, threads, ranks.size());
  double forward = 0.0;
  double backward = 0.0;
  StepTime busiest;
  double busiest_computing = 0.0;
  for (const RankMemory& rank : ranks) {
    const Work& work = rank.dry.step;
    forward = std::max(forward, seconds_for(own, rank.dry.forward));
    backward = std::max(backward, seconds_for(own, rank.dry.backward));
    const double computing = seconds_for(own, work);
    if (computing <= busiest_computing) continue;
    busiest_computing = computing;
    busiest.gemm_seconds = product_seconds(own, work);
    busiest.attention_seconds = attention_seconds(own, work);
    busiest.traffic_seconds = work.traffic_bytes / own.copy;
    busiest.floor_seconds = work.flops() / own.gemm_ceiling + work.traffic_bytes / own.copy;
    if (is_on_gpu(config)) continue;
    double sent = 0.0;
    for (const Communicator::Sent& message : rank.dry.sent) {
      if (!is_pipeline_tag(message.tag)) sent += static_cast<double>(message.bytes);
    }
    // Of gradients as much is received; both read and write memory.
    busiest.reduction_seconds = 4.0 * sent / own.copy;
  }
  if (layout.num_stages > 1) {
    const Roster roster =
        Roster::initial(static_cast<int>(layout.num_replicas), static_cast<int>(layout.num_stages),
                        static_cast<int>(ranks.size()));
    const auto programs =
        stage_programs(config.parallel.schedule, static_cast<int>(layout.num_stages),
                       static_cast<int>(layout.micro_batches));
    const double computing = static_cast<double>(layout.micro_batches) * (forward + backward);
    busiest.idle_seconds =
        std::max(0.0, simulate(roster, programs, forward, backward).makespan - computing);
  }
  busiest.seconds = busiest_computing + busiest.reduction_seconds + busiest.idle_seconds;
  return busiest;
}

}  // namespace chaski
