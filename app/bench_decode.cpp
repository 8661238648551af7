#include <fmt/core.h>
#include <memory>
#include <numeric>

#include "app/bench_command.h"
#include "app/bench_model.h"
#include "app/bench_report.h"
#include "app/human_format.h"
#include "app/memory_bandwidth.h"
#include "app/option_checks.h"
#include "kernels/elementwise.h"
#include "model/decoder.h"

namespace chaski {
namespace {

struct BenchDecodeOptions {
  BenchModel model;
  BenchDevice device{.device = "auto", .precision = "fp32"};
  std::int64_t context = 128;
  BenchEffort effort;
  bool json = false;
};

// Larger than any cache of a CPU; for a GPU by its own.
constexpr std::int64_t kBandwidthElements = std::int64_t{64} << 20;
constexpr std::int64_t kTimesCacheOfGpu = 4;

// What must be read for one token: every weight but the embeddings of other tokens, and the keys
// and values of the tokens before it.
std::int64_t bytes_per_token(const LlamaConfig& model, std::int64_t context) {
  const std::int64_t embeddings = model.vocab_size * model.hidden_size;
  const std::int64_t weights =
      model.num_parameters() - (model.tie_embeddings ? 0 : embeddings - model.hidden_size);
  const std::int64_t cache = 2 * model.num_layers * context * model.kv_size();
  return (weights + cache) * static_cast<std::int64_t>(sizeof(float));
}

// Text written token by token, each sampled as `chaski generate` does by default.
class Generation {
 public:
  Generation(Device& device, const LlamaConfig& model, std::int64_t context)
      : stage_(device, model, stage_range(model, 0, 1), {.training = false}),
        decoder_(device, stage_, context + 1),
        prompt_(static_cast<std::size_t>(context)),
        logits_(static_cast<std::size_t>(model.vocab_size)) {
    stage_.initialize(1);
    std::iota(prompt_.begin(), prompt_.end(), 0);
    for (std::int32_t& id : prompt_) id %= static_cast<std::int32_t>(model.vocab_size);
    decoder_.feed(prompt_);
  }

  // Seconds for one more token after the context.
  double run() {
    decoder_.rewind(static_cast<std::int64_t>(prompt_.size()));
    return timed([this] {
      copy_to_host(decoder_.feed({&token_, 1}), logits_.data());
      token_ = sample_token(logits_, SamplingOptions{}, 0.5);
    });
  }

 private:
  Stage stage_;
  Decoder decoder_;
  std::vector<std::int32_t> prompt_;
  std::vector<float> logits_;
  std::int32_t token_ = 0;
};

nlohmann::json run(const BenchDecodeOptions& options) {
  const LlamaConfig model = options.model.config();
  const DeviceChoice choice = options.device.choice();
  const auto device = choice.create(options.model.threads);
  Generation generation(*device, model, options.context);
  const std::int64_t cache = device_properties(*device).cache_bytes;
  const Buffer memory =
      device->allocate(DType::f32, {cache > 0 ? kTimesCacheOfGpu * cache : kBandwidthElements},
                       MemoryCategory::workspace);
  const MemoryBandwidth bandwidth(memory.tensor(), device->num_threads());

  std::vector<BenchSeries> series{{"decode", [&] { return generation.run(); }}};
  for (BenchSeries& one : bandwidth.series()) series.push_back(std::move(one));
  // Zeros, which writing leaves, are read faster than numbers.
  measure(series, options.effort, [&] { fill_normal(memory.tensor(), 0.0f, 1.0f, 1, 1); });
  const MemoryBandwidth::Rates rates = bandwidth.rates(series);
  const Spread spread = spread_of(series.front().seconds);
  const std::int64_t bytes = bytes_per_token(model, options.context);
  nlohmann::json report = to_json(spread);
  report["benchmark"] = "decode";
  report["preset"] = options.model.preset;
  report["context"] = options.context;
  report["machine"] = describe_machine(*device, choice.precision);
  report["bytes_per_token"] = bytes;
  report["tokens_per_second"] = 1.0 / spread.median;
  report["memory_gb_per_second"] = to_json(rates);
  report["share"] = 1e-9 * static_cast<double>(bytes) / spread.median / rates.read;
  return report;
}

void print_table(const nlohmann::json& report) {
  const ReportLine line(report);
  fmt::print("one token after {} of {}; {}\n\n", line.integer("context"), line.text("preset"),
             machine_line(report["machine"]));
  ReportTable table(
      {"batch", "tokens/s", "median ms", "best ms", "worst ms", "read a token", "share"});
  table.add({"1", line.number("tokens_per_second", 1), line.milliseconds("median", 3),
             line.milliseconds("best", 3), line.milliseconds("worst", 3),
             format_bytes(report["bytes_per_token"].get<std::int64_t>()), line.number("share", 3)});
  table.print();
  fmt::print("\nshare: of the tokens that memory could be read for at {} GB/s\n",
             ReportLine(report["memory_gb_per_second"]).number("read", 1));
}

}  // namespace

void register_bench_decode(CLI::App& bench) {
  auto options = std::make_shared<BenchDecodeOptions>();
  CLI::App* command = bench.add_subcommand(
      "decode", "Generating a token, beside the time for which its weights take to be read");
  options->model.add_to(*command);
  add_device_option(*command, options->device.device);
  command->add_option("--context", options->context, "Tokens before the one that is measured")
      ->check(whole_number_between(1, 1 << 20))
      ->capture_default_str();
  options->effort.add_to(*command);
  add_json_option(*command, options->json);
  command->callback([options] {
    require_one_process("decode");
    const nlohmann::json report = run(*options);
    options->json ? print_json(report) : print_table(report);
  });
}

}  // namespace chaski
