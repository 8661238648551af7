#include <algorithm>
#include <fmt/core.h>
#include <memory>

#include "app/bench_command.h"
#include "app/bench_directory.h"
#include "app/bench_report.h"
#include "app/human_format.h"
#include "fault/checkpoint_reader.h"
#include "fault/checkpoint_writer.h"
#include "kernels/elementwise.h"
#include "model/stage.h"
#include "optim/adamw.h"

namespace chaski {
namespace {

struct BenchCheckpointOptions {
  std::string preset = "llama-60m";
  std::int64_t vocab_size = 0;
  std::string directory;
  int threads = 0;
  int repetitions = 5;
  bool json = false;
};

// The weights and the two moments of a model, each with numbers of its own.
struct TrainingState {
  TrainingState(Device& device, const LlamaConfig& config)
      : stage(device, config, stage_range(config, 0, 1), {.training = false}),
        optimizer(make_adamw(device, stage.parameters(), {})),
        moments(optimizer->state()) {
    stage.initialize(1);
    // Memory that was never written is not there: copying it would look too fast.
    for (std::size_t i = 0; i < moments.size(); ++i) {
      copy(stage.parameters()[static_cast<std::int64_t>(i / 2)].value, moments[i].tensor);
    }
  }

  Stage stage;
  std::unique_ptr<Optimizer> optimizer;
  std::vector<NamedTensor> moments;
};

constexpr std::size_t kPieceBytes = std::size_t{8} << 20;

// All bytes of `data` one after the other, then fsync: what the disk can do.
void write_plain(const std::string& path, const Tensor& data) {
  const auto file = posix_file_system().create(path);
  const auto* bytes = static_cast<const char*>(data.raw());
  const auto total = static_cast<std::size_t>(data.num_bytes());
  for (std::size_t done = 0; done < total; done += kPieceBytes)
    file->write_at(done, bytes + done, std::min(kPieceBytes, total - done));
  file->sync();
  file->close();
}

void read_plain(const std::string& path, const Tensor& data) {
  const auto file = posix_file_system().open(path);
  auto* bytes = static_cast<char*>(data.raw());
  const auto total = static_cast<std::size_t>(data.num_bytes());
  for (std::size_t done = 0; done < total; done += kPieceBytes)
    file->read_at(done, bytes + done, std::min(kPieceBytes, total - done));
}

// Seconds of each repetition.
struct Measured {
  std::vector<double> copy, plain_copy;
  std::vector<double> write, plain_write;
  std::vector<double> read, plain_read;
  std::vector<double> stall, stall_share, save;
};

class CheckpointBenchmark {
 public:
  explicit CheckpointBenchmark(const BenchCheckpointOptions& options)
      : options_(options),
        config_(config_of(options)),
        directory_(options.directory),
        device_(Device::create_cpu(options.threads)),
        state_(*device_, config_),
        bytes_(snapshot_bytes_of(state_.stage.parameters(), state_.moments)),
        source_(allocate()),
        target_(allocate()) {
    fill(source_.tensor(), 1.5f);
    fill(target_.tensor(), 0.0f);
  }

  nlohmann::json run() {
    CheckpointWriterOptions writer_options;
    writer_options.keep = 1;
    writer_options.copy_threads = device_->num_threads();
    CheckpointWriter writer(directory_.file("checkpoints"), writer_options);
    writer.prepare(state_.stage.parameters(), state_.moments);
    writer.wait();
    for (int i = 0; i < options_.repetitions; ++i) {
      measure_plain();
      measure_save(writer, i + 1);
    }
    return report();
  }

 private:
  static LlamaConfig config_of(const BenchCheckpointOptions& options) {
    LlamaConfig config = llama_preset(options.preset);
    if (options.vocab_size > 0) config.vocab_size = options.vocab_size;
    return config;
  }

  Buffer allocate() {
    return device_->allocate(DType::f32, {bytes_ / static_cast<std::int64_t>(sizeof(float))},
                             MemoryCategory::workspace);
  }

  void measure_plain() {
    const std::string path = directory_.file("plain");
    measured_.plain_copy.push_back(timed([&] { copy(source_.tensor(), target_.tensor()); }));
    measured_.plain_write.push_back(timed([&] { write_plain(path, source_.tensor()); }));
    measured_.plain_read.push_back(timed([&] { read_plain(path, target_.tensor()); }));
    posix_file_system().remove_file(path);
  }

  void measure_save(CheckpointWriter& writer, std::int64_t step) {
    CheckpointMetadata metadata;
    metadata.step = step;
    metadata.model = config_;
    metadata.optimizer_name = state_.optimizer->name();
    metadata.precision = {{"weights", "f32"}, {"moments", "f32"}};
    writer.save(metadata, state_.stage.parameters(), state_.moments);
    writer.wait();
    const SaveReport saved = writer.take_reports().back();
    file_bytes_ = saved.bytes;
    measured_.copy.push_back(saved.copy_seconds);
    measured_.write.push_back(saved.total_seconds - saved.stall_seconds);
    measured_.stall.push_back(saved.stall_seconds);
    measured_.save.push_back(saved.total_seconds);
    measured_.stall_share.push_back(saved.stall_seconds / saved.total_seconds);
    measured_.read.push_back(timed([&] {
      const CheckpointReader reader(saved.path, Verification::sizes);
      reader.read_weights(state_.stage.parameters());
      reader.read_optimizer(state_.optimizer->name(), state_.moments);
    }));
  }

  nlohmann::json line(const char* part, const std::vector<double>& seconds,
                      const std::vector<double>& plain_seconds) const {
    const Spread spread = spread_of(seconds);
    const Spread plain = spread_of(plain_seconds);
    nlohmann::json line = to_json(spread);
    line["part"] = part;
    line["bytes_per_second"] = static_cast<double>(bytes_) / spread.median;
    line["best_bytes_per_second"] = static_cast<double>(bytes_) / spread.best;
    line["plain_bytes_per_second"] = static_cast<double>(bytes_) / plain.median;
    line["plain_best_bytes_per_second"] = static_cast<double>(bytes_) / plain.best;
    // Disks vary: like with like, median with median.
    line["share"] = plain.median / spread.median;
    return line;
  }

  nlohmann::json report() const {
    nlohmann::json report;
    report["benchmark"] = "checkpoint";
    report["preset"] = options_.preset;
    report["state_bytes"] = bytes_;
    report["file_bytes"] = file_bytes_;
    report["threads"] = device_->num_threads();
    report["lines"] = {line("snapshot", measured_.copy, measured_.plain_copy),
                       line("write", measured_.write, measured_.plain_write),
                       line("read back", measured_.read, measured_.plain_read)};
    report["stall"] = to_json(spread_of(measured_.stall));
    report["save"] = to_json(spread_of(measured_.save));
    report["stall_share"] = median(measured_.stall_share);
    return report;
  }

  const BenchCheckpointOptions& options_;
  LlamaConfig config_;
  BenchDirectory directory_;
  std::unique_ptr<Device> device_;
  TrainingState state_;
  std::int64_t bytes_;
  Buffer source_;
  Buffer target_;
  std::uint64_t file_bytes_ = 0;
  Measured measured_;
};

void print_table(const nlohmann::json& report) {
  fmt::print("checkpoint of {}: weights and two moments, {}; {} threads copy\n\n",
             report["preset"].get<std::string>(),
             format_bytes(report["state_bytes"].get<std::int64_t>()), report["threads"].get<int>());
  ReportTable table({"part", "GB/s", "best GB/s", "median s", "best s", "worst s", "plain GB/s",
                     "plain best", "share"});
  for (const nlohmann::json& line : report["lines"]) {
    const auto rate = [&](const char* key) {
      return fmt::format("{:.2f}", 1e-9 * line[key].get<double>());
    };
    const auto seconds = [&](const char* key) {
      return fmt::format("{:.3f}", line["seconds"][key].get<double>());
    };
    table.add({line["part"].get<std::string>(), rate("bytes_per_second"),
               rate("best_bytes_per_second"), seconds("median"), seconds("best"), seconds("worst"),
               rate("plain_bytes_per_second"), rate("plain_best_bytes_per_second"),
               fmt::format("{:.3f}", line["share"].get<double>())});
  }
  table.print();
  fmt::print(
      "\nplain: a copy in memory; a file written front to back with fsync; the same file read\n"
      "training stalls {:.3f} s of a save of {:.3f} s: {:.1f} %\n",
      report["stall"]["seconds"]["median"].get<double>(),
      report["save"]["seconds"]["median"].get<double>(),
      100.0 * report["stall_share"].get<double>());
}

}  // namespace

void register_bench_checkpoint(CLI::App& bench) {
  auto options = std::make_shared<BenchCheckpointOptions>();
  CLI::App* command = bench.add_subcommand(
      "checkpoint", "Saving and reading back, beside plain copies and files of as many bytes");
  command->add_option("--preset", options->preset, "Model shape")->capture_default_str();
  command
      ->add_option("--vocab-size", options->vocab_size, "Instead of the preset's; 0: the preset's")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--dir", options->directory, "On the disk to measure; default: temporary")
      ->type_name("DIR");
  command->add_option("--threads", options->threads, "That take the snapshot; 0: all cores")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--repetitions", options->repetitions, "Saves to measure")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_json_option(*command, options->json);
  command->callback([options] {
    const nlohmann::json report = CheckpointBenchmark(*options).run();
    options->json ? print_json(report) : print_table(report);
  });
}

}  // namespace chaski
