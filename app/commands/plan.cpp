#include <algorithm>
#include <filesystem>
#include <fmt/core.h>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "app/commands/commands.h"
#include "app/config/config.h"
#include "app/console/human_format.h"
#include "app/console/launcher.h"
#include "app/console/option_checks.h"
#include "app/job/mpi_session.h"
#include "app/job/process_memory.h"
#include "app/plan/memory_check.h"
#include "app/plan/report.h"
#include "app/step/batch_tensors.h"
#include "app/step/step_runner.h"
#include "data/sequence_dataset.h"
#include "kernels/device/clock.h"
#include "parallel/mpi/communicator.h"

namespace chaski {
namespace {

struct PlanArguments {
  std::string config;
  std::vector<std::string> overrides;
  std::int64_t processes = 0;
  bool no_measure = false;
  // Of a GPU that is not here; 0: not given.
  std::uint64_t device_memory = 0;
  double gemm_tflops = 0.0;
  double memory_bandwidth = 0.0;  // GB/s
  bool json = false;
};

bool is_given(const MachineRates& rates) {
  return rates.gemm > 0.0 && rates.copy > 0.0;
}

MachineRates given_rates(const PlanArguments& arguments) {
  return rates_from(1e12 * arguments.gemm_tflops, 1e9 * arguments.memory_bandwidth);
}

// What a run would compute on; whether its GPUs, if any, are to be planned for unseen.
struct PlannedDevice {
  DeviceChoice choice;
  bool is_here = true;
};

PlannedDevice choose_planned_device(const PlanArguments& arguments, const DeviceConfig& config,
                                    int num_processes) {
  const int here = num_cuda_devices();
  const bool other = arguments.device_memory > 0 || is_given(given_rates(arguments));
  if (other && config.backend == BackendChoice::cpu) {
    throw std::invalid_argument(
        "--device-memory, --gemm-tflops and --memory-bandwidth describe a GPU, but device.backend "
        "is \"cpu\"\nhint: add --set device.backend=cuda");
  }
  const bool gpu = other || config.backend == BackendChoice::cuda ||
                   (config.backend == BackendChoice::automatic && here >= num_processes);
  // A GPU for each process, be they all here or not.
  DeviceConfig wanted = config;
  wanted.backend = gpu ? BackendChoice::automatic : BackendChoice::cpu;
  return {choose_device(wanted, num_processes, 0, num_processes), !gpu || (here > 0 && !other)};
}

// As wanted; or as many as mpirun started; or as few as the layout needs.
int number_of_processes(const PlanArguments& arguments, const TrainConfig& config, int launched) {
  if (arguments.processes > 0) return static_cast<int>(arguments.processes);
  if (is_launched()) return launched;
  return static_cast<int>(std::max<std::int64_t>(1, config.parallel.data) *
                          config.parallel.pipeline);
}

// A plan can be made before there is data.
void find_token_files(const TrainConfig& config, PlanningMachine& machine) {
  try {
    std::int64_t bytes = 0;
    for (const std::string& path : resolve_files(config).train) {
      bytes += static_cast<std::int64_t>(std::filesystem::file_size(path));
    }
    machine.surroundings.token_file_bytes = bytes;
  } catch (const std::exception& error) {
    const std::string what = error.what();
    machine.missing_data = what.substr(0, what.find('\n'));
  }
}

// One step of a tiny model: starts the threads and loads what a training process loads.
void warm_up(const Membership& membership, const DeviceChoice& choice, int threads) {
  const auto device = choice.create(threads);
  HostedModelOptions options;
  options.model.hidden_size = 64;
  options.model.intermediate_size = 128;
  options.model.num_layers = 1;
  options.model.num_heads = 2;
  options.model.vocab_size = 256;
  options.model.resolve();
  options.micro_batch = 4;
  options.sequence_length = 64;
  options.precision = choice.precision;
  HostedModel model(*device, options);
  model.adopt(membership);
  model.initialize(1);
  BatchTensors tensors(*device, options.micro_batch, options.sequence_length);
  Batch batch;
  batch.resize(options.micro_batch, options.sequence_length);
  const MicroBatch micro_batch = tensors.upload(batch, false);
  const std::int64_t replicas = membership.roster().num_replicas();
  StepRunner(membership, model, 1.0)
      .run({.targets = replicas * options.micro_batch * options.sequence_length,
            .learning_rate = 1e-3},
           [&](int, int) { return micro_batch; });
}

// Null where there are no data yet.
std::shared_ptr<const SequenceDataset> open_training_data(const TrainConfig& config) {
  try {
    return SequenceDataset::open(resolve_files(config).train, Part::train,
                                 config.data.sequence_length);
  } catch (const std::exception&) {
    return nullptr;
  }
}

// What this process can take of its GPU; the other processes are on GPUs like it.
PlannedGpu examine_gpu(const PlannedDevice& planned, const PlanArguments& arguments) {
  PlannedGpu gpu;
  gpu.device =
      planned.is_here ? planned.choice.create(0) : Device::create_counting(Backend::cuda, 0);
  gpu.memory_bytes = arguments.device_memory > 0
                         ? static_cast<std::int64_t>(arguments.device_memory)
                         : device_properties(*gpu.device).free_bytes;
  return gpu;
}

// All processes of the job take part.
PlanningMachine examine_machine(const PlanArguments& arguments, const TrainConfig& config,
                                const PlannedDevice& planned, int num_processes,
                                const Membership& membership) {
  PlanningMachine machine;
  machine.cores = Device::create_cpu()->num_threads();
  // GPUs that are elsewhere have another host.
  if (planned.is_here) machine.memory = machine_memory();
  if (planned.choice.backend == Backend::cuda) machine.gpu = examine_gpu(planned, arguments);
  find_token_files(config, machine);
  // Beside its tensors a training process takes what this one takes once it has done the same:
  // opened the data, prepared its products, run a step.
  const auto data = open_training_data(config);
  const TrainingPlan plan = make_plan(config, num_processes, machine);
  const bool possible = fits(plan, machine.memory) && fits_gpu(plan, machine);
  warm_up(membership, planned.is_here ? planned.choice : DeviceChoice{},
          planned_threads(config, num_processes, machine.cores));
  machine.surroundings.process_base = resident_bytes();
  if (is_given(given_rates(arguments))) {
    machine.rates = given_rates(arguments);
  } else if (possible && planned.is_here && !arguments.no_measure) {
    // What has no room cannot be measured either.
    machine.rates = measure_rates([&] { return planned.choice.create(machine.cores); }, config);
  }
  return machine;
}

// Plans count in integers, which sizes that nobody can mean would overflow.
void check_size(const TrainConfig& config, int num_processes) {
  const RunLayout layout = resolve_layout(config, num_processes);
  double least = 0.0;
  for (int stage = 0; stage < layout.num_stages; ++stage) {
    least = std::max(least, least_bytes_of_process(config, layout, stage));
  }
  if (least < 1e15) return;
  throw std::invalid_argument(fmt::format(
      "a process of this run needs {} of memory at least: too much to be planned\nhint: a smaller "
      "parallel.micro_batch, data.sequence_length or model needs less",
      format_bytes(static_cast<std::int64_t>(std::min(least, 9e18)))));
}

void run_plan(const PlanArguments& arguments) {
  TrainConfig config = load_config(arguments.config, arguments.overrides, StepsAre::optional);
  MpiRuntime& runtime = mpi_session();
  // Of a model that is whole in each process, for the one step that this runs.
  const Membership membership(runtime);
  const int num_processes = number_of_processes(arguments, config, runtime.size());
  const PlannedDevice planned = choose_planned_device(arguments, config.device, num_processes);
  config = settle_device(config, planned.choice);
  check_size(config, num_processes);
  const PlanningMachine machine =
      examine_machine(arguments, config, planned, num_processes, membership);
  if (!membership.reports()) return;
  const TrainingPlan plan = make_plan(config, num_processes, machine);
  const std::vector<WhatIf> neighbours = plan_neighbours(plan, machine);
  const std::vector<FfnChoice> ffn_choices = plan_ffn_choices(plan, machine);
  if (arguments.json) {
    fmt::print("{}\n", plan_json(plan, machine, neighbours, ffn_choices).dump(2));
  } else {
    print_plan(plan, machine, neighbours, ffn_choices);
  }
}

}  // namespace

void register_plan_command(CLI::App& app) {
  auto arguments = std::make_shared<PlanArguments>();
  CLI::App* command = app.add_subcommand(
      "plan", "Predict memory, time and messages of a training run before it begins");
  command->add_option("config", arguments->config, "TOML file of the run")
      ->required()
      ->type_name("CONFIG.toml");
  command
      ->add_option("--set", arguments->overrides,
                   "Override a key of the config, e.g. --set parallel.micro_batch=16; may be "
                   "repeated")
      ->type_name("KEY=VALUE")
      ->take_all()
      ->allow_extra_args(false);
  command
      ->add_option("--processes", arguments->processes,
                   "Of the run, all on this machine; default: as the config's layout needs")
      ->check(whole_number_from(1));
  command->add_flag("--no-measure", arguments->no_measure,
                    "Do not measure this machine: no times are predicted");
  CLI::Option* memory =
      command->add_option("--device-memory", arguments->device_memory,
                          "Plan for GPUs with so much memory each, which need not be here, e.g. "
                          "80GiB; nothing is measured then");
  memory->transform(CLI::Validator(to_positive_bytes, ""))->type_name("SIZE");
  CLI::Option* gemm = command->add_option(
      "--gemm-tflops", arguments->gemm_tflops,
      "What matrix products reach on such a GPU, 10^12 operations/s, for the time of a step");
  CLI::Option* bandwidth = command->add_option("--memory-bandwidth", arguments->memory_bandwidth,
                                               "What a copy reaches there, 10^9 bytes/s");
  gemm->check(positive_number())->needs(bandwidth);
  bandwidth->check(positive_number())->needs(gemm);
  add_json(*command, arguments->json);
  command->callback([arguments] { run_plan(*arguments); });
}

}  // namespace chaski
