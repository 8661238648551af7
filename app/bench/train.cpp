#include <algorithm>
#include <chrono>
#include <fmt/core.h>
#include <memory>
#include <nlohmann/json.hpp>

#include "app/bench/report.h"
#include "app/bench/step_profile.h"
#include "app/bench/training.h"
#include "app/commands/bench.h"
#include "app/console/human_format.h"
#include "app/console/option_checks.h"
#include "app/job/mpi_session.h"
#include "app/job/process_memory.h"
#include "app/plan/gemm_ceiling.h"
#include "kernels/device/cpu_isa.h"
#include "kernels/products/matmul.h"
#include "model/ffn.h"
#include "parallel/mpi/communicator.h"

namespace chaski {
namespace {

struct BenchTrainOptions {
  BenchTrainingOptions training;
  int steps = 10;
  int warmup_steps = 2;
  bool profile = false;
  bool json = false;
};

nlohmann::json memory_report(const Device& device) {
  nlohmann::json report;
  for (int i = 0; i < kNumMemoryCategories; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    report[name_of(category)] = device.memory().peak(category);
  }
  return report;
}

nlohmann::json measure(const Membership& membership, const BenchTrainOptions& options) {
  Communicator& communicator = membership.communicator();
  const BenchTrainingOptions& chosen = options.training;
  const DeviceChoice choice = chosen.choose_device(communicator);
  const auto device = choice.create(chosen.model.threads);
  const auto measure_ceiling = [&] {
    return measure_gemm_ceiling(*choice.create(chosen.model.threads),
                                types_of(choice.precision).compute);
  };
  const double before = measure_ceiling();
  BenchTraining training(membership, *device, chosen);
  const LlamaConfig& model = training.model();

  std::vector<double> seconds;
  double waited = 0.0;
  for (int step = 0; step < options.warmup_steps + options.steps; ++step) {
    StepOutcome outcome;
    const double elapsed = timed([&] { outcome = training.step(); });
    if (step < options.warmup_steps) continue;
    seconds.push_back(elapsed);
    waited += outcome.communication_wait_seconds;
  }
  const std::int64_t peak_memory = peak_resident_bytes();
  // What else the machine did in one of the two half seconds must not make the ceiling lower.
  const double ceiling = std::max(before, measure_ceiling());
  const auto [fastest, slowest] = std::minmax_element(seconds.begin(), seconds.end());
  const double rate = static_cast<double>(training.tokens_per_step()) / median(seconds);
  const double gflops = 1e-9 * rate * model.training_flops_per_token(chosen.sequence_length);
  const double job_ceiling = communicator.size() * ceiling;
  nlohmann::json report;
  report["benchmark"] = "train";
  report["preset"] = chosen.model.preset;
  report["parameters"] = model.num_parameters();
  report["micro_batch"] = chosen.micro_batch;
  report["micro_batches"] = chosen.micro_batches;
  report["sequence_length"] = chosen.sequence_length;
  report["ffn"] = model.moc ? "moc" : "swiglu";
  if (model.moc) {
    report["moc_keep"] = model.moc->keep;
    report["moc_index"] = name_of(moc_shape(model, training.moc_index()).index);
  }
  report["feed_forward"] = model.describe_ffn();
  report["recompute"] = name_of(chosen.recompute);
  report["processes"] = communicator.size();
  report["threads_per_process"] = device->num_threads();
  report["instruction_set"] = name_of(cpu_isa());
  report["device"] = describe_device(*device);
  report["precision"] = name_of(choice.precision);
  report["gemm_library"] = gemm_library(choice.backend);
  report["steps"] = options.steps;
  report["step_seconds"] = {
      {"median", median(seconds)}, {"fastest", *fastest}, {"slowest", *slowest}};
  report["tokens_per_second"] = rate;
  report["effective_gflops"] = gflops;
  report["gemm_ceiling_gflops"] = job_ceiling;
  report["gemm_share"] = gflops / job_ceiling;
  report["communication_wait_seconds_per_step"] = waited / options.steps;
  report["memory_bytes"] = memory_report(*device);
  report["peak_resident_bytes"] = peak_memory;
  if (options.profile) {
    device->allow_graphs(false);  // a graph has no parts to be timed
    const Profile profile(*device);
    ProfiledSteps profiled{
        .model = model,
        .backend = choice.backend,
        .tokens = training.rows_per_pass() * chosen.sequence_length,
        .steps = options.steps,
    };
    profiled.gemm_ceiling = ceiling;
    profiled.seconds = timed([&] {
      for (int i = 0; i < options.steps; ++i) training.step();
    });
    report["profile"] = profile_report(profile, profiled);
  }
  return report;
}

void print_train(const nlohmann::json& report) {
  const ReportLine all(report);
  const ReportLine seconds(report["step_seconds"]);
  const auto line = [](const std::string& name, const std::string& value) {
    fmt::print("{:<28}{}\n", name, value);
  };
  const auto mebibytes = [](const nlohmann::json& bytes) {
    return fmt::format("{:.1f} MiB", bytes.get<double>() / (1 << 20));
  };
  const auto number_of = [&](const char* key, const char* one, const char* more) {
    return format_number_of(report[key].get<int>(), one, more);
  };
  line("model", all.text("preset") + ", " + all.number("parameters", 1, 1e-6) + " M parameters");
  line("feed-forward", all.text("feed_forward") + ", recompute " + all.text("recompute"));
  line("device", all.text("device") + ", " + all.text("precision"));
  line("batch", fmt::format("{} x {} tokens, {}, {} x {}", all.integer("micro_batch"),
                            all.integer("sequence_length"),
                            number_of("micro_batches", "micro-batch", "micro-batches"),
                            number_of("processes", "process", "processes"),
                            number_of("threads_per_process", "thread", "threads")));
  line("step, seconds", fmt::format("{} median ({} to {}) of {}", seconds.number("median", 3),
                                    seconds.number("fastest", 3), seconds.number("slowest", 3),
                                    all.integer("steps")));
  line("tokens/s", all.number("tokens_per_second", 0));
  line("GEMM ceiling, GFLOP/s", fmt::format("{} (best product before and after the steps; {}, {})",
                                            all.number("gemm_ceiling_gflops", 0),
                                            all.text("gemm_library"), all.text("instruction_set")));
  line("effective, GFLOP/s", fmt::format("{}, {} of the ceiling", all.number("effective_gflops", 0),
                                         all.number("gemm_share", 3)));
  for (const auto& [category, bytes] : report["memory_bytes"].items())
    line("memory, " + category, mebibytes(bytes));
  line("memory, whole process, peak", mebibytes(report["peak_resident_bytes"]));
  if (report.contains("profile")) print_profile(report["profile"]);
}

void run_bench_train(const BenchTrainOptions& options) {
  const Membership membership(mpi_session());
  check_memory_of_bench(options.training, membership);
  const nlohmann::json report = measure(membership, options);
  if (!membership.reports()) return;
  options.json ? print_json(report) : print_train(report);
}

}  // namespace

void register_bench_train(CLI::App& bench) {
  auto options = std::make_shared<BenchTrainOptions>();
  CLI::App* command = bench.add_subcommand(
      "train", "Whole training steps on random tokens; under mpirun data-parallel");
  add_bench_training_options(*command, options->training);
  command
      ->add_option("--micro-batches", options->training.micro_batches, "Of a step, in each process")
      ->check(whole_number_between(1, 1000000))
      ->capture_default_str();
  add_count(*command, "--steps", options->steps, "Steps to measure");
  add_count(*command, "--warmup-steps", options->warmup_steps, "Steps before measuring", 0);
  options->training.model.add_ffn_to(*command);
  add_choice(*command, "--recompute", choice(options->training.recompute),
             {"none", "elementwise", "block"}, "As model.recompute");
  command->add_flag("--profile", options->profile,
                    "Run as many steps again and print where their time goes");
  add_json(*command, options->json);
  command->callback([options] { run_bench_train(*options); });
}

}  // namespace chaski
