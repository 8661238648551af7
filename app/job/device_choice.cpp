#include "app/job/device_choice.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <iterator>
#include <set>
#include <stdexcept>
#include <vector>

#include "app/console/human_format.h"
#include "app/console/option_checks.h"
#include "app/job/job.h"
#include "kernels/device/cpu_isa.h"
#include "kernels/device/device_backend.h"
#include "kernels/products/matmul.h"
#include "parallel/nccl/nccl.h"

namespace chaski {
namespace {

[[noreturn]] void refuse(const std::string& what, const std::string& hint) {
  throw std::invalid_argument(what + "\nhint: " + hint);
}

Backend backend_for(BackendChoice choice, int num_gpus, int processes_on_host,
                    const DeviceWords& words) {
  if (choice == BackendChoice::cpu) return Backend::cpu;
  if (choice == BackendChoice::automatic) {
    return num_gpus >= processes_on_host ? Backend::cuda : Backend::cpu;
  }
  if (!is_built_with_cuda() || num_gpus == 0) {
    if (const std::string why = cuda_obstacle(0); !why.empty()) {
      throw std::invalid_argument(fmt::format("{} is \"cuda\", but {}", words.backend, why));
    }
  }
  if (num_gpus < processes_on_host) {
    refuse(fmt::format("{} is \"cuda\", but this host has {} for {}", words.backend,
                       format_number_of(num_gpus, "GPU"),
                       format_number_of(processes_on_host, "process", "processes")),
           "start one process a GPU; CUDA_VISIBLE_DEVICES may hide some");
  }
  return Backend::cuda;
}

std::string why_without_gpu(int num_gpus, int processes_on_host) {
  if (num_gpus > 0) {
    return fmt::format("this host has {} for {}", format_number_of(num_gpus, "GPU"),
                       format_number_of(processes_on_host, "process", "processes"));
  }
  if (!has_cuda_driver()) return "";
  const std::string why = cuda_obstacle(0);
  return why.substr(0, why.find('\n'));
}

// Whether each process of this host is shown one GPU, another than its neighbours: what job
// managers do who deal GPUs out. All processes of the job take part.
bool has_gpu_of_its_own(Communicator& communicator, const HostShare& share) {
  const std::vector<std::string> all =
      lines_of_all(communicator, num_cuda_devices() == 1 ? cuda_device_address(0) : std::string());
  std::set<std::string> distinct;
  for (const int rank : share.ranks) distinct.insert(all[static_cast<std::size_t>(rank)]);
  return distinct.size() == share.ranks.size() && distinct.count("") == 0;
}

Precision precision_for(PrecisionChoice choice, Backend backend, const DeviceWords& words) {
  const bool gpu = backend == Backend::cuda;
  const char* name = "bf16";
  switch (choice) {
    case PrecisionChoice::automatic:
      return gpu ? Precision::bf16 : Precision::fp32;
    case PrecisionChoice::fp32:
      return Precision::fp32;
    case PrecisionChoice::tf32:
      if (gpu) return Precision::fp32;
      name = "tf32";
      break;
    case PrecisionChoice::bf16:
      if (gpu) return Precision::bf16;
      break;
    case PrecisionChoice::bf16_pure:
      if (gpu) return Precision::bf16_pure;
      name = "bf16-pure";
      break;
  }
  refuse(fmt::format("{} is \"{}\" but the CPU computes in fp32", words.precision, name),
         "leave it out, or set \"auto\"");
}

DeviceChoice choose_cpu(DeviceConfig config, Communicator& communicator) {
  config.backend = BackendChoice::cpu;
  return choose_device(config, communicator);
}

// "0 to 3", "0, 2, 4 to 6" of ascending numbers.
std::string format_ranges(const std::vector<int>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t end = i + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", numbers[i]);
    if (end - i > 1) text += fmt::format(" to {}", numbers[end - 1]);
    i = end;
  }
  return text;
}

// In the order of PrecisionChoice, as in the config's schema.
constexpr const char* kPrecisions[] = {"auto", "fp32", "tf32", "bf16", "bf16-pure"};
constexpr DeviceWords kOptions{.backend = "--device", .precision = "--precision"};

DeviceConfig config_named(const std::string& name, const std::string& precision) {
  const auto found = std::find(std::begin(kPrecisions), std::end(kPrecisions), precision);
  if (found == std::end(kPrecisions))
    throw std::invalid_argument("no such precision: " + precision);
  DeviceConfig config;
  config.precision = static_cast<PrecisionChoice>(found - std::begin(kPrecisions));
  if (name == "cpu") config.backend = BackendChoice::cpu;
  if (name == "cuda") config.backend = BackendChoice::cuda;
  return config;
}

}  // namespace

std::unique_ptr<Device> DeviceChoice::create(int threads) const {
  if (backend == Backend::cpu) return Device::create_cpu(threads);
  std::unique_ptr<Device> device = Device::create_cuda(ordinal);
  device->allow_tf32(tf32);
  device->allow_graphs(graphs);
  return device;
}

DeviceChoice choose_device(const DeviceConfig& config, int num_gpus, int local_rank,
                           int processes_on_host, const DeviceWords& words) {
  DeviceChoice choice;
  choice.backend = backend_for(config.backend, num_gpus, processes_on_host, words);
  choice.precision = precision_for(config.precision, choice.backend, words);
  choice.tf32 = config.precision == PrecisionChoice::tf32;
  choice.graphs = config.graphs;
  choice.ordinal = choice.backend == Backend::cuda ? local_rank : 0;
  if (config.backend == BackendChoice::automatic && choice.backend == Backend::cpu) {
    choice.without_gpu = why_without_gpu(num_gpus, processes_on_host);
  }
  return choice;
}

DeviceChoice choose_device(const DeviceConfig& config, Communicator& communicator,
                           const DeviceWords& words) {
  const HostShare share = share_of_host(communicator);
  if (has_gpu_of_its_own(communicator, share)) return choose_device(config, 1, 0, 1, words);
  return choose_device(config, num_cuda_devices(), share.local_rank, share.processes(), words);
}

DeviceChoice choose_job_device(const DeviceConfig& config, Communicator& communicator) {
  if (communicator.size() == 1) return choose_device(config, communicator);
  if (is_built_with_cuda() && !is_built_with_nccl()) {
    if (config.backend != BackendChoice::cuda) return choose_cpu(config, communicator);
    throw std::invalid_argument(
        fmt::format("device.backend is \"cuda\" with {} processes, but this program is built "
                    "without NCCL\nhint: start one process, set \"cpu\", or build where nccl.h and "
                    "libnccl are found",
                    communicator.size()));
  }
  const DeviceChoice choice = choose_device(config, communicator);
  std::array<std::int64_t, 1> gpus{choice.backend == Backend::cuda ? 1 : 0};
  communicator.all_reduce_sum(std::span<std::int64_t>(gpus));
  const bool mixed = gpus[0] > 0 && gpus[0] < communicator.size();
  return mixed ? choose_cpu(config, communicator) : choice;
}

TrainConfig settle_device(TrainConfig config, const DeviceChoice& choice) {
  const bool gpu = choice.backend == Backend::cuda;
  config.device.backend = gpu ? BackendChoice::cuda : BackendChoice::cpu;
  switch (choice.precision) {
    case Precision::fp32:
      config.device.precision = choice.tf32 ? PrecisionChoice::tf32 : PrecisionChoice::fp32;
      break;
    case Precision::bf16:
      config.device.precision = PrecisionChoice::bf16;
      break;
    case Precision::bf16_pure:
      config.device.precision = PrecisionChoice::bf16_pure;
      break;
  }
  // Passes are for a CPU's caches.
  if (gpu) config.device.tokens_per_pass = 0;
  return config;
}

std::string describe_device(Device& device) {
  if (device.backend() == Backend::cpu) {
    return fmt::format("CPU, {} a process, {}, {}",
                       format_number_of(device.num_threads(), "thread"), name_of(cpu_isa()),
                       gemm_library());
  }
  return fmt::format("{}, {}", device.describe(), gemm_library(Backend::cuda));
}

std::string describe_device(Device& device, const DeviceChoice& choice) {
  const std::string text = describe_device(device);
  return choice.without_gpu.empty() ? text : text + "; no GPU is used: " + choice.without_gpu;
}

std::vector<std::string> describe_job_devices(Communicator& communicator, int root, Device& device,
                                              const DeviceChoice& choice) {
  std::string own = describe_device(device, choice);
  if (communicator.size() == 1) return {own};
  if (device.backend() == Backend::cuda) own += ", " + nccl_version();
  const std::vector<std::string> all =
      communicator.gather(MpiRuntime::host_name() + ": " + own, root);
  std::vector<std::string> lines;
  std::vector<bool> told(all.size(), false);
  for (std::size_t first = 0; first < all.size(); ++first) {
    if (told[first]) continue;
    std::vector<int> ranks;
    for (std::size_t rank = first; rank < all.size(); ++rank) {
      if (all[rank] != all[first]) continue;
      told[rank] = true;
      ranks.push_back(static_cast<int>(rank));
    }
    lines.push_back(fmt::format("rank{} {} on {}", ranks.size() > 1 ? "s" : "",
                                format_ranges(ranks), all[first]));
  }
  return lines;
}

std::string describe_precision(const DeviceChoice& choice) {
  const TensorTypes types = types_of(choice.precision);
  if (choice.precision == Precision::fp32) {
    return fmt::format("weights, gradients, moments and activations fp32{}",
                       choice.tf32 ? ", multiplied as TF32" : "");
  }
  return fmt::format("{} weights {}, gradients {}, moments {}; activations and what ops read {}",
                     types.has_master_weights() ? "master" : "all", name_of(types.weights),
                     name_of(types.gradients), name_of(types.moments), name_of(types.compute));
}

void add_device_option(CLI::App& command, std::string& name) {
  allow_only(
      command.add_option("--device", name, "Where to compute; auto: a GPU where there is one"),
      {"auto", "cpu", "cuda"})
      ->capture_default_str();
}

void add_precision_option(CLI::App& command, std::string& name) {
  allow_only(command.add_option("--precision", name, "As device.precision"),
             {std::begin(kPrecisions), std::end(kPrecisions)})
      ->capture_default_str();
}

DeviceChoice device_named(const std::string& name, const std::string& precision) {
  return choose_device(config_named(name, precision), num_cuda_devices(), 0, 1, kOptions);
}

DeviceChoice device_named(const std::string& name, const std::string& precision,
                          Communicator& communicator) {
  return choose_device(config_named(name, precision), communicator, kOptions);
}

}  // namespace chaski
