#include <algorithm>
#include <fmt/core.h>
#include <memory>
#include <numeric>
#include <span>

#include "app/bench/memory_bandwidth.h"
#include "app/bench/model.h"
#include "app/bench/report.h"
#include "app/commands/bench.h"
#include "app/console/human_format.h"
#include "app/console/option_checks.h"
#include "kernels/elementwise/elementwise.h"
#include "model/decoder.h"

namespace chaski {
namespace {

// Feed-forward networks to put side by side.
enum class DecodeFfn { all, swiglu, moc, moc_two_of_eight };

struct BenchDecodeOptions {
  BenchModel model;
  BenchDevice device{.device = "auto", .precision = "fp32"};
  DecodeFfn ffn = DecodeFfn::all;
  std::int64_t context = 128;
  std::vector<std::int64_t> batches = {1};
  BenchEffort effort;
  bool json = false;
};

// Larger than any cache of a CPU; for a GPU by its own.
constexpr std::int64_t kBandwidthElements = std::int64_t{64} << 20;
constexpr std::int64_t kTimesCacheOfGpu = 4;

// One way of computing the FFN of the model.
struct Variant {
  const char* name;
  LlamaConfig model;
};

std::vector<Variant> variants_of(const BenchDecodeOptions& options) {
  std::vector<Variant> variants;
  const auto add = [&](DecodeFfn ffn, const char* name, FeedForwardKind kind, MocPattern pattern) {
    if (options.ffn != DecodeFfn::all && options.ffn != ffn) return;
    BenchModel chosen = options.model;
    chosen.ffn = kind;
    chosen.moc.pattern = pattern;
    // Side by side --moc-keep is of the one that may keep any number.
    if (options.ffn == DecodeFfn::all && ffn != DecodeFfn::moc) chosen.moc.keep = 0;
    variants.push_back({name, chosen.config()});
  };
  add(DecodeFfn::swiglu, "swiglu", FeedForwardKind::swiglu, MocPattern::topk);
  add(DecodeFfn::moc, "moc", FeedForwardKind::moc, MocPattern::topk);
  add(DecodeFfn::moc_two_of_eight, "moc 2:8", FeedForwardKind::moc, MocPattern::two_of_eight);
  return variants;
}

// What a step of so many sequences must read beside the FFNs' weights: every other weight but the
// embeddings of other tokens, and the keys and values of the tokens before.
std::int64_t other_bytes(const LlamaConfig& model, std::int64_t context, std::int64_t batch) {
  const std::int64_t embeddings = model.vocab_size * model.hidden_size;
  const std::int64_t ffns = 3 * model.num_layers * model.intermediate_size * model.hidden_size;
  const std::int64_t weights = model.num_parameters() - ffns -
                               (model.tie_embeddings ? 0 : embeddings - batch * model.hidden_size);
  const std::int64_t cache = 2 * model.num_layers * batch * context * model.kv_size();
  return (weights + cache) * static_cast<std::int64_t>(sizeof(float));
}

// Texts written token by token, each sampled as `chaski generate` does by default.
class Generation {
 public:
  Generation(Device& device, const Stage& stage, std::int64_t context, std::int64_t batch)
      : context_(context),
        vocab_size_(stage.config().vocab_size),
        decoder_(device, stage, context + 1, batch),
        tokens_(static_cast<std::size_t>(batch)),
        logits_(static_cast<std::size_t>(batch * vocab_size_)) {
    const std::int64_t hidden = stage.config().hidden_size;
    for (Buffer* buffer : {&normed_, &out_})
      *buffer = device.allocate(DType::f32, {batch, hidden}, MemoryCategory::activations);
    fill_normal(normed_.tensor(), 0.0f, 1.0f, 1, 2);
    std::vector<std::int32_t> prompt(static_cast<std::size_t>(context));
    for (std::int64_t sequence = 0; sequence < batch; ++sequence) {
      std::iota(prompt.begin(), prompt.end(), static_cast<std::int32_t>(sequence * context));
      for (std::int32_t& id : prompt) id %= static_cast<std::int32_t>(vocab_size_);
      decoder_.feed(prompt, false, sequence);
    }
  }

  // Seconds for one more token of each sequence after the context.
  double run() {
    for (std::int64_t i = 0; i < decoder_.num_sequences(); ++i) decoder_.rewind(context_, i);
    return timed([this] {
      copy_to_host(decoder_.feed_each(tokens_), logits_.data());
      for (std::size_t i = 0; i < tokens_.size(); ++i) {
        const auto row = std::span(logits_).subspan(i * static_cast<std::size_t>(vocab_size_),
                                                    static_cast<std::size_t>(vocab_size_));
        // Different texts: they would else choose the same channels.
        const double uniform = (static_cast<double>(i) + 0.5) / static_cast<double>(tokens_.size());
        tokens_[i] = sample_token(row, SamplingOptions{}, uniform);
      }
    });
  }
  // Seconds for the FFNs alone.
  double run_ffns(Device& device) {
    return timed([&] {
      decoder_.run_ffns(normed_.tensor(), out_.tensor());
      device.synchronize();
    });
  }
  // Of the last run of either.
  std::int64_t ffn_bytes() const { return decoder_.ffn_bytes_read(); }

 private:
  std::int64_t context_;
  std::int64_t vocab_size_;
  Decoder decoder_;
  std::vector<std::int32_t> tokens_;
  std::vector<float> logits_;
  Buffer normed_;
  Buffer out_;
};

// What is measured of one variant and batch: the whole model and its FFNs alone.
struct MeasuredLine {
  const Variant* variant;
  std::int64_t batch;
  std::unique_ptr<Generation> generation;
};

nlohmann::json part_report(const BenchSeries& series, std::int64_t bytes, std::int64_t batch,
                           double read_rate) {
  const Spread spread = spread_of(series.seconds);
  nlohmann::json part = to_json(spread);
  part["tokens_per_second"] = static_cast<double>(batch) / spread.median;
  part["bytes_per_token"] = static_cast<double>(bytes) / static_cast<double>(batch);
  part["share"] = 1e-9 * static_cast<double>(bytes) / spread.median / read_rate;
  return part;
}

nlohmann::json line_report(const MeasuredLine& measured, const BenchSeries& whole,
                           const BenchSeries& ffns, const BenchDecodeOptions& options,
                           Device& device, double read_rate) {
  const std::int64_t batch = measured.batch;
  const LlamaConfig& model = measured.variant->model;
  measured.generation->run();
  const std::int64_t bytes =
      other_bytes(model, options.context, batch) + measured.generation->ffn_bytes();
  nlohmann::json line = part_report(whole, bytes, batch, read_rate);
  line["ffn"] = measured.variant->name;
  line["batch"] = batch;
  line["keep"] = model.moc ? model.moc->keep : model.intermediate_size;
  measured.generation->run_ffns(device);
  line["ffn_part"] = part_report(ffns, measured.generation->ffn_bytes(), batch, read_rate);
  return line;
}

nlohmann::json run(const BenchDecodeOptions& options) {
  const DeviceChoice choice = options.device.choice();
  const auto device = choice.create(options.model.threads);
  const std::vector<Variant> variants = variants_of(options);
  std::vector<std::unique_ptr<Stage>> stages;
  std::vector<MeasuredLine> measured;
  for (const Variant& variant : variants) {
    const StageRange all = stage_range(variant.model, 0, 1);
    stages.push_back(
        std::make_unique<Stage>(*device, variant.model, all, StageOptions{.training = false}));
    stages.back()->initialize(1);
    for (const std::int64_t batch : options.batches)
      measured.push_back(
          {&variant, batch,
           std::make_unique<Generation>(*device, *stages.back(), options.context, batch)});
  }
  const std::int64_t cache = device_properties(*device).cache_bytes;
  const Buffer memory =
      device->allocate(DType::f32, {cache > 0 ? kTimesCacheOfGpu * cache : kBandwidthElements},
                       MemoryCategory::workspace);
  const MemoryBandwidth bandwidth(memory.tensor());

  std::vector<BenchSeries> series;
  for (const MeasuredLine& one : measured) {
    Generation* generation = one.generation.get();
    series.push_back({"decode", [generation] { return generation->run(); }});
    series.push_back({"ffns", [generation, &device] { return generation->run_ffns(*device); }});
  }
  for (BenchSeries& one : bandwidth.series()) series.push_back(std::move(one));
  // Zeros, which writing leaves, are read faster than numbers.
  measure(series, options.effort, [&] { fill_normal(memory.tensor(), 0.0f, 1.0f, 1, 1); });
  const MemoryBandwidth::Rates rates = bandwidth.rates(series);
  nlohmann::json report;
  report["benchmark"] = "decode";
  report["preset"] = options.model.preset;
  report["context"] = options.context;
  report["machine"] = describe_machine(*device, choice.precision);
  report["memory_gb_per_second"] = to_json(rates);
  for (std::size_t i = 0; i < measured.size(); ++i) {
    report["lines"].push_back(
        line_report(measured[i], series[2 * i], series[2 * i + 1], options, *device, rates.read));
  }
  return report;
}

// How many times the tokens per second of the dense FFN's line of the same batch; empty without it.
std::string times_dense(const nlohmann::json& report, const nlohmann::json& line,
                        const char* part) {
  const auto rate = [&](const nlohmann::json& of) {
    return (part == nullptr ? of : of[part])["tokens_per_second"].get<double>();
  };
  for (const nlohmann::json& other : report["lines"]) {
    if (other["ffn"] == "swiglu" && other["batch"] == line["batch"])
      return fmt::format("{:.2f}", rate(line) / rate(other));
  }
  return "";
}

void print_decode(const nlohmann::json& report) {
  const ReportLine heading(report);
  fmt::print("one token of each sequence after {} of {}; {}\n\n", heading.integer("context"),
             heading.text("preset"), machine_line(report["machine"]));
  ReportTable table({"ffn", "kept", "batch", "tokens/s", "x dense", "median ms", "best ms",
                     "worst ms", "read a token", "share", "FFNs: ms", "FFNs: x dense",
                     "FFNs: read a token", "FFNs: share"});
  const auto bytes = [](const nlohmann::json& part) {
    return format_bytes(static_cast<std::int64_t>(part["bytes_per_token"].get<double>()));
  };
  for (const nlohmann::json& entry : report["lines"]) {
    const ReportLine line(entry);
    const nlohmann::json& ffns = entry["ffn_part"];
    const ReportLine part(ffns);
    table.add({line.text("ffn"), line.integer("keep"), line.integer("batch"),
               line.number("tokens_per_second", 1), times_dense(report, entry, nullptr),
               line.milliseconds("median", 3), line.milliseconds("best", 3),
               line.milliseconds("worst", 3), bytes(entry), line.number("share", 3),
               part.milliseconds("median", 3), times_dense(report, entry, "ffn_part"), bytes(ffns),
               part.number("share", 3)});
  }
  table.print();
  fmt::print(
      "\nshare: of the tokens that memory could be read for at {} GB/s\n"
      "kept: channels of the FFN that a token uses; the weights of those that none of the batch\n"
      "uses are not read\n",
      ReportLine(report["memory_gb_per_second"]).number("read", 1));
}

}  // namespace

void register_bench_decode(CLI::App& bench) {
  auto options = std::make_shared<BenchDecodeOptions>();
  CLI::App* command = bench.add_subcommand("decode",
                                           "Generating a token with a dense FFN and with MoC, "
                                           "beside the time for which the weights that "
                                           "it reads take to be read");
  options->model.add_to(*command);
  add_choice(*command, "--ffn", choice(options->ffn), {"all", "swiglu", "moc", "moc-2:8"},
             "Feed-forward network; all of them side by side");
  command
      ->add_option("--moc-keep", options->model.moc.keep,
                   "As model.moc.keep, a count; 0: the default")
      ->check(whole_number_between(0, MocShape::kMaxChannels));
  add_device_option(*command, options->device.device);
  command->add_option("--context", options->context, "Tokens before the one that is measured")
      ->check(whole_number_between(1, 1 << 20))
      ->capture_default_str();
  command
      ->add_option("--batch", options->batches,
                   "Sequences that are written at a time; several numbers: one after the other")
      ->check(whole_number_between(1, 1024))
      ->capture_default_str();
  options->effort.add_to(*command);
  add_json(*command, options->json);
  command->callback([options] {
    require_one_process("decode");
    const nlohmann::json report = run(*options);
    options->json ? print_json(report) : print_decode(report);
  });
}

}  // namespace chaski
