#include <algorithm>
#include <fmt/core.h>
#include <memory>

#include "app/bench/directory.h"
#include "app/bench/report.h"
#include "app/bench/training.h"
#include "app/commands/bench.h"
#include "app/console/human_format.h"
#include "app/console/option_checks.h"
#include "app/job/mpi_session.h"
#include "fault/checkpoint/reader.h"
#include "fault/checkpoint/writer.h"
#include "kernels/elementwise/elementwise.h"

namespace chaski {
namespace {

struct BenchCheckpointOptions {
  BenchTrainingOptions training;
  std::string directory;
  int repetitions = 5;
  bool json = false;
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
  std::vector<double> step;                 // undisturbed
  std::vector<double> save, stall, longer;  // beside training
};

class CheckpointBenchmark {
 public:
  CheckpointBenchmark(const Membership& membership, const BenchCheckpointOptions& options)
      : options_(options),
        directory_(options.directory),
        device_(options.training.choose_device(membership.communicator())
                    .create(options.training.model.threads)),
        training_(membership, *device_, options.training),
        weights_(training_.hosted().model->parameters()),
        moments_(training_.hosted().optimizer->state()),
        bytes_(checkpoint_bytes_of(weights_, moments_)),
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
    training_.runner().set_before_update([&] { writer.before_update(); });
    for (int i = 0; i < kWarmUpSteps; ++i) training_.step();
    for (int i = 0; i < options_.repetitions; ++i) {
      measure_plain();
      measure_save(writer);
      measure_save_beside_training(writer);
    }
    return report();
  }

 private:
  static constexpr int kWarmUpSteps = 2;
  static constexpr int kUndisturbedSteps = 3;

  Buffer allocate() {
    return device_->allocate(DType::f32, {bytes_ / static_cast<std::int64_t>(sizeof(float))},
                             MemoryCategory::workspace);
  }

  void measure_plain() {
    const std::string path = directory_.file("plain");
    measured_.plain_copy.push_back(timed([&] { copy(source_.tensor(), target_.tensor()); }));
    // Not counted: it takes pages of the system for the first time, which those after it find
    // again.
    write_plain(path, source_.tensor());
    posix_file_system().remove_file(path);
    measured_.plain_write.push_back(timed([&] { write_plain(path, source_.tensor()); }));
    measured_.plain_read.push_back(timed([&] { read_plain(path, target_.tensor()); }));
    posix_file_system().remove_file(path);
  }

  SaveReport finished(CheckpointWriter& writer) {
    writer.wait();
    const SaveReport saved = writer.take_reports().back();
    file_bytes_ = saved.bytes;
    return saved;
  }

  void start_save(CheckpointWriter& writer) {
    CheckpointMetadata metadata;
    metadata.step = ++saves_;
    metadata.model = training_.model();
    metadata.optimizer_name = training_.hosted().optimizer->name();
    metadata.precision = {{"weights", "f32"}, {"moments", "f32"}};
    writer.save(metadata, weights_, moments_);
  }

  // The worst that can happen: an update that comes at once, so that all is copied first.
  void measure_save(CheckpointWriter& writer) {
    start_save(writer);
    writer.before_update();
    const SaveReport saved = finished(writer);
    measured_.copy.push_back(saved.copy_seconds);
    measured_.write.push_back(saved.total_seconds - saved.stall_seconds);
    measured_.read.push_back(timed([&] {
      const CheckpointReader reader(saved.path, Verification::sizes);
      reader.read_weights(weights_);
      reader.read_optimizer(*training_.hosted().optimizer);
    }));
  }

  void measure_save_beside_training(CheckpointWriter& writer) {
    for (int i = 0; i < kUndisturbedSteps; ++i) {
      measured_.step.push_back(timed([&] { training_.step(); }));
    }
    start_save(writer);
    int steps = 0;
    const double seconds = timed([&] {
      do {
        training_.step();
        ++steps;
      } while (writer.busy());
    });
    const SaveReport saved = finished(writer);
    measured_.save.push_back(saved.total_seconds);
    measured_.stall.push_back(saved.stall_seconds);
    measured_.longer.push_back(seconds - steps * median(measured_.step));
    copied_bytes_ = std::max(copied_bytes_, saved.copied_bytes);
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
    report["preset"] = options_.training.model.preset;
    report["state_bytes"] = bytes_;
    report["file_bytes"] = file_bytes_;
    report["threads"] = device_->num_threads();
    report["lines"] = {line("copy", measured_.copy, measured_.plain_copy),
                       line("write", measured_.write, measured_.plain_write),
                       line("read back", measured_.read, measured_.plain_read)};
    report["step"] = to_json(spread_of(measured_.step));
    report["save"] = to_json(spread_of(measured_.save));
    report["stall"] = to_json(spread_of(measured_.stall));
    report["stall_share"] = median(measured_.stall) / median(measured_.save);
    report["longer_steps"] = to_json(spread_of(measured_.longer));
    report["copied_bytes"] = copied_bytes_;
    return report;
  }

  const BenchCheckpointOptions& options_;
  BenchDirectory directory_;
  std::unique_ptr<Device> device_;
  BenchTraining training_;
  ParameterSet& weights_;
  std::vector<NamedTensor> moments_;
  std::int64_t bytes_;
  Buffer source_;
  Buffer target_;
  std::int64_t saves_ = 0;
  std::uint64_t file_bytes_ = 0;
  std::int64_t copied_bytes_ = 0;
  Measured measured_;
};

void print_checkpoint(const nlohmann::json& report) {
  fmt::print("checkpoint of {}: weights and two moments, {}; {}\n\n",
             report["preset"].get<std::string>(),
             format_bytes(report["state_bytes"].get<std::int64_t>()),
             format_number_of(report["threads"].get<int>(), "thread"));
  ReportTable table({"part", "GB/s", "best GB/s", "median s", "best s", "worst s", "plain GB/s",
                     "plain best", "share"});
  for (const nlohmann::json& part : report["lines"]) {
    const ReportLine line(part);
    table.add({line.text("part"), line.number("bytes_per_second", 2, 1e-9),
               line.number("best_bytes_per_second", 2, 1e-9), line.seconds("median", 3),
               line.seconds("best", 3), line.seconds("worst", 3),
               line.number("plain_bytes_per_second", 2, 1e-9),
               line.number("plain_best_bytes_per_second", 2, 1e-9), line.number("share", 3)});
  }
  table.print();
  const auto seconds = [&](const char* what) {
    return report[what]["seconds"]["median"].get<double>();
  };
  fmt::print(
      "\nplain: a copy in memory; a file written front to back with fsync; the same file read\n"
      "share: of the plain one's speed, median by median\n"
      "copy: what an update must wait for that comes as soon as the save has begun\n"
      "beside training (steps of {:.3f} s): a save takes {:.3f} s, steps wait {:.4f} s for it: "
      "{:.1f} %;\n"
      "with the processor time and bandwidth that it takes they get {:.3f} s longer; at most {} "
      "copied\n",
      seconds("step"), seconds("save"), seconds("stall"),
      100.0 * report["stall_share"].get<double>(), seconds("longer_steps"),
      format_bytes(report["copied_bytes"].get<std::int64_t>()));
}

}  // namespace

void register_bench_checkpoint(CLI::App& bench) {
  auto options = std::make_shared<BenchCheckpointOptions>();
  options->training.device.device =
      "cpu";  // what is compared with reads the tensors in host memory
  CLI::App* command = bench.add_subcommand(
      "checkpoint", "Saving and reading back, beside plain copies and files of as many bytes");
  add_bench_training_options(*command, options->training);
  command->add_option("--dir", options->directory, "On the disk to measure; default: temporary")
      ->type_name("DIR");
  add_count(*command, "--repetitions", options->repetitions, "Saves to measure");
  add_json(*command, options->json);
  command->callback([options] {
    require_one_process("checkpoint");
    const Membership membership(mpi_session());
    check_memory_of_bench(options->training, membership);
    const nlohmann::json report = CheckpointBenchmark(membership, *options).run();
    options->json ? print_json(report) : print_checkpoint(report);
  });
}

}  // namespace chaski
