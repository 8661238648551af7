#include <CLI/CLI.hpp>
#include <algorithm>
#include <fmt/core.h>
#include <memory>
#include <numeric>
#include <vector>

#include "app/bench_command.h"
#include "app/bench_model.h"
#include "app/bench_report.h"
#include "app/human_format.h"
#include "app/memory_bandwidth.h"
#include "app/option_checks.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/moc_decode.h"
#include "model/decoder.h"

namespace chaski {
namespace {

const std::vector<std::string> kFfns = {"swiglu", "moc", "moc-2:8"};

struct BenchDecodeOptions {
  BenchModel model;
  BenchDevice device{.device = "auto", .precision = "fp32"};
  std::vector<std::string> ffns = {"swiglu"};
  std::vector<std::int64_t> batches = {1};
  std::int64_t context = 128;
  BenchEffort effort;
  bool json = false;
};

// Larger than any cache of a CPU; for a GPU by its own.
constexpr std::int64_t kBandwidthElements = std::int64_t{64} << 20;
constexpr std::int64_t kTimesCacheOfGpu = 4;
constexpr std::int64_t kFloat = sizeof(float);

LlamaConfig model_with(const BenchModel& options, const std::string& ffn) {
  BenchModel model = options;
  model.ffn = ffn == "swiglu" ? FeedForwardKind::swiglu : FeedForwardKind::moc;
  if (ffn == "moc-2:8") model.moc = {.pattern = MocPattern::two_of_eight};
  return model.config();
}

// What is read of all weights of the blocks' FFNs.
std::int64_t ffn_bytes(const LlamaConfig& model) {
  return kFloat * model.num_layers * 3 * model.hidden_size * model.intermediate_size;
}

// What must be read for one token of each of so many sequences: every weight but the embeddings of
// other tokens, and the keys and values of the tokens before it. With an FFN that reads so much.
std::int64_t model_bytes(const LlamaConfig& model, std::int64_t context, std::int64_t sequences,
                         std::int64_t ffn) {
  const std::int64_t embeddings = model.vocab_size * model.hidden_size;
  const std::int64_t weights = model.num_parameters() - (model.tie_embeddings ? 0 : embeddings) +
                               (model.tie_embeddings ? 0 : sequences * model.hidden_size);
  const std::int64_t cache = 2 * model.num_layers * context * model.kv_size();
  return kFloat * (weights + sequences * cache) - ffn_bytes(model) + ffn;
}

// Text written token by token, each sampled as `chaski generate` does by default, by several
// sequences at once; and the FFNs of all its blocks by themselves.
class Generation {
 public:
  Generation(Device& device, const LlamaConfig& model, std::int64_t context, std::int64_t sequences)
      : device_(device),
        stage_(device, model, stage_range(model, 0, 1), {.training = false}),
        decoder_(device, stage_, context + 1, sequences),
        context_(context),
        rows_(device.allocate(DType::f32, {2 * sequences, model.hidden_size},
                              MemoryCategory::activations)),
        logits_(static_cast<std::size_t>(sequences * model.vocab_size)),
        tokens_(static_cast<std::size_t>(sequences)) {
    stage_.initialize(1);
    std::vector<std::int32_t> prompt(static_cast<std::size_t>(context));
    std::iota(prompt.begin(), prompt.end(), 0);
    for (std::int32_t& id : prompt) id %= static_cast<std::int32_t>(model.vocab_size);
    std::iota(tokens_.begin(), tokens_.end(), 0);
    decoder_.feed(prompt);
    fill_normal(rows_.tensor(), 0.0f, 1.0f, 1, 1);
    for (const Block& block : stage_.blocks()) {
      if (!block.ffn().decodes_selected(sequences)) continue;
      const Tensor& down = block.ffn().down_weight();
      transposed_.push_back(
          device.allocate(DType::f32, {down.dim(1), down.dim(0)}, MemoryCategory::weights));
      transpose(down, transposed_.back().tensor());
    }
  }

  const LlamaConfig& model() const { return stage_.config(); }
  std::int64_t sequences() const { return static_cast<std::int64_t>(tokens_.size()); }

  // Seconds for one more token of each sequence after the context.
  double run() {
    decoder_.rewind(context_);
    return timed([this] {
      copy_to_host(decoder_.feed_each(tokens_), logits_.data());
      const auto vocab_size = static_cast<std::size_t>(model().vocab_size);
      for (std::size_t i = 0; i < tokens_.size(); ++i) {
        const std::span<const float> logits(&logits_[i * vocab_size], vocab_size);
        tokens_[i] = sample_token(logits, SamplingOptions{}, 0.5);
      }
    });
  }

  double run_ffns() {
    return timed(device_, [this] {
      for (std::size_t i = 0; i < stage_.blocks().size(); ++i) {
        stage_.blocks()[i].ffn().decode(input(), transposed(i), output());
      }
    });
  }

  // Of the FFNs' weights, as run_ffns() reads them: what the tokens select, counted.
  std::int64_t ffn_bytes_read() {
    if (transposed_.empty()) return ffn_bytes(model());
    const MocShape shape = moc_shape(model(), std::nullopt);
    std::int64_t rows = 0;
    for (std::int64_t layer = 0; layer < model().num_layers; ++layer) {
      Workspace::Frame frame(device_);
      const MocSelection selection{frame.f32({sequences(), shape.keep}),
                                   frame.tensor(DType::u8, {sequences(), 2 * shape.keep})};
      const Tensor gates = frame.f32({sequences(), model().intermediate_size});
      linear_forward(input(), weight(layer, "gate"), gates);
      moc_decode(shape, input(), gates,
                 {weight(layer, "up"), transposed(static_cast<std::size_t>(layer))}, selection,
                 output());
      rows += model().intermediate_size + 2 * num_selected_channels(shape, selection);
    }
    return kFloat * rows * model().hidden_size;
  }

 private:
  Tensor input() const { return rows_.tensor().rows(0, sequences()); }
  Tensor output() const { return rows_.tensor().rows(sequences(), sequences()); }
  Tensor transposed(std::size_t block) const {
    return transposed_.empty() ? Tensor() : transposed_[block].tensor();
  }
  const Tensor& weight(std::int64_t layer, const char* projection) {
    return stage_.parameters()
        .at(fmt::format("model.layers.{}.mlp.{}_proj.weight", layer, projection))
        .value;
  }

  Device& device_;
  Stage stage_;
  Decoder decoder_;
  std::int64_t context_;
  std::vector<Buffer> transposed_;
  Buffer rows_;  // [2 · sequences, hidden_size]: what FFNs read and write
  std::vector<float> logits_;
  std::vector<std::int32_t> tokens_;
};

nlohmann::json line_of(const BenchSeries& series, const std::string& ffn, const char* part,
                       std::int64_t sequences, std::int64_t bytes, double read_rate) {
  const Spread spread = spread_of(series.seconds);
  nlohmann::json line = to_json(spread);
  line["ffn"] = ffn;
  line["part"] = part;
  line["batch"] = sequences;
  line["tokens_per_second"] = static_cast<double>(sequences) / spread.median;
  line["bytes_per_step"] = bytes;
  line["bytes_per_token"] = static_cast<double>(bytes) / static_cast<double>(sequences);
  line["share"] = 1e-9 * static_cast<double>(bytes) / spread.median / read_rate;
  return line;
}

nlohmann::json run(const BenchDecodeOptions& options) {
  const DeviceChoice choice = options.device.choice();
  const auto device = choice.create(options.model.threads);
  const std::int64_t cache = device_properties(*device).cache_bytes;
  const Buffer memory =
      device->allocate(DType::f32, {cache > 0 ? kTimesCacheOfGpu * cache : kBandwidthElements},
                       MemoryCategory::workspace);
  const MemoryBandwidth bandwidth(memory.tensor(), device->num_threads());
  // Zeros, which writing leaves, are read faster than numbers.
  const auto before_round = [&] { fill_normal(memory.tensor(), 0.0f, 1.0f, 1, 1); };

  nlohmann::json report;
  report["benchmark"] = "decode";
  report["preset"] = options.model.preset;
  report["context"] = options.context;
  report["machine"] = describe_machine(*device, choice.precision);
  // All kinds of a batch take turns.
  for (const std::int64_t batch : options.batches) {
    std::vector<std::unique_ptr<Generation>> generations;
    std::vector<BenchSeries> series;
    for (const std::string& ffn : options.ffns) {
      Generation& generation = *generations.emplace_back(std::make_unique<Generation>(
          *device, model_with(options.model, ffn), options.context, batch));
      series.push_back({ffn + " model", [&generation] { return generation.run(); }});
      series.push_back({ffn + " ffn", [&generation] { return generation.run_ffns(); }});
    }
    for (BenchSeries& one : bandwidth.series()) series.push_back(std::move(one));
    measure(series, options.effort, before_round);
    const MemoryBandwidth::Rates rates = bandwidth.rates(series);
    for (std::size_t i = 0; i < generations.size(); ++i) {
      Generation& generation = *generations[i];
      const std::int64_t ffn = generation.ffn_bytes_read();
      const std::int64_t all = model_bytes(generation.model(), options.context, batch, ffn);
      const auto add = [&](const BenchSeries& one, const char* part, std::int64_t bytes) {
        report["lines"].push_back(line_of(one, options.ffns[i], part, batch, bytes, rates.read));
      };
      add(series[2 * i], "model", all);
      add(series[2 * i + 1], "ffn", ffn);
    }
    report["memory_gb_per_second"] = to_json(rates);
  }
  return report;
}

void print_table(const nlohmann::json& report) {
  const ReportLine line(report);
  fmt::print("one token after {} of {}; {}\n\n", line.integer("context"), line.text("preset"),
             machine_line(report["machine"]));
  ReportTable table({"FFN", "part", "batch", "tokens/s", "median ms", "best ms", "worst ms",
                     "read a token", "share", "to the first"});
  for (const nlohmann::json& row : report["lines"]) {
    const auto first = std::find_if(
        report["lines"].begin(), report["lines"].end(), [&](const nlohmann::json& other) {
          return other["part"] == row["part"] && other["batch"] == row["batch"];
        });
    const double ratio =
        row["tokens_per_second"].get<double>() / (*first)["tokens_per_second"].get<double>();
    const ReportLine cells(row);
    table.add({cells.text("ffn"), cells.text("part"), cells.integer("batch"),
               cells.number("tokens_per_second", 1), cells.milliseconds("median", 3),
               cells.milliseconds("best", 3), cells.milliseconds("worst", 3),
               format_bytes(static_cast<std::int64_t>(row["bytes_per_token"].get<double>())),
               cells.number("share", 3), fmt::format("{:.2f}", ratio)});
  }
  table.print();
  fmt::print(
      "\npart: the whole model, or its feed-forward networks by themselves; batch: sequences at "
      "once\nshare: of the tokens that memory could be read for at {} GB/s\n",
      ReportLine(report["memory_gb_per_second"]).number("read", 1));
}

}  // namespace

void register_bench_decode(CLI::App& bench) {
  auto options = std::make_shared<BenchDecodeOptions>();
  CLI::App* command = bench.add_subcommand(
      "decode", "Generating a token, beside the time for which its weights take to be read");
  options->model.add_to(*command);
  add_device_option(*command, options->device.device);
  command
      ->add_option("--ffn", options->ffns, "Kinds of FFN, beside each other: swiglu, moc, moc-2:8")
      ->check(one_of(kFfns))
      ->capture_default_str();
  command->add_option("--moc-keep", options->model.moc.keep, "Channels of moc; 0: the default")
      ->check(whole_number_between(0, MocShape::kMaxChannels));
  command->add_option("--batch", options->batches, "Sequences that are continued at once; several")
      ->check(whole_number_between(1, 1024))
      ->capture_default_str();
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
