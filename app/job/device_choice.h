#pragma once

#include <memory>
#include <string>
#include <vector>

#include "app/config/config.h"
#include "kernels/device/device.h"
#include "model/precision.h"
#include "parallel/mpi/communicator.h"

namespace CLI {
class App;
}

namespace chaski {

// Where this process computes and in which numbers.
struct DeviceChoice {
  Backend backend = Backend::cpu;
  int ordinal = 0;  // of the GPU
  Precision precision = Precision::fp32;
  bool tf32 = false;
  bool graphs = true;
  // Of a CPU that was chosen although there is a driver for GPUs: why.
  std::string without_gpu;

  // `threads`: of a CPU device.
  std::unique_ptr<Device> create(int threads) const;
};

// What the user said where a GPU is, or what it computes in: the keys of a config, or options.
struct DeviceWords {
  const char* backend = "device.backend";
  const char* precision = "device.precision";
};

// What [device] asks for, on a machine with `num_gpus` GPUs, for the `local_rank`th process of its
// host. backend auto: a GPU where there is one for each process; precision auto: bf16 there, else
// fp32. Throws std::invalid_argument naming the key (or the option), the value and what is allowed:
// a GPU in a build without CUDA or on a host without one, more processes than GPUs, bf16 on a CPU.
DeviceChoice choose_device(const DeviceConfig& config, int num_gpus, int local_rank,
                           int processes_on_host, const DeviceWords& words = {});
// The same on this host, where the GPUs may also be dealt out already: to each process one of its
// own to see (CUDA_VISIBLE_DEVICES).
DeviceChoice choose_device(const DeviceConfig& config, Communicator& communicator,
                           const DeviceWords& words = {});

// As choose_device, for processes that train together, and so all on GPUs, one each, or all on
// CPUs. Throws std::invalid_argument too where several GPUs are asked for and the program is built
// without NCCL.
DeviceChoice choose_job_device(const DeviceConfig& config, Communicator& communicator);

// The config with nothing of [device] left open: as a run with this choice has it.
TrainConfig settle_device(TrainConfig config, const DeviceChoice& choice);

// One line each for the console: what computes, and the type of every class of tensors.
std::string describe_device(Device& device);
// The same and, where GPUs are there but not used, why.
std::string describe_device(Device& device, const DeviceChoice& choice);
std::string describe_precision(const DeviceChoice& choice);

// What computes, in lines for the console: one for all the processes that say the same, with their
// ranks and host where there are several. On rank `root`; empty elsewhere. All must call it.
std::vector<std::string> describe_job_devices(Communicator& communicator, int root, Device& device,
                                              const DeviceChoice& choice);

// What commands without a config use: --device auto, cpu or cuda.
void add_device_option(CLI::App& command, std::string& name);
void add_precision_option(CLI::App& command, std::string& name);
DeviceChoice device_named(const std::string& name, const std::string& precision);
// `precision`: a value of device.precision. Throws std::invalid_argument for another.
DeviceChoice device_named(const std::string& name, const std::string& precision,
                          Communicator& communicator);

}  // namespace chaski
