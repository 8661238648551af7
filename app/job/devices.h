#pragma once

#include <string>
#include <vector>

#include "app/config/config.h"
#include "app/job/device_choice.h"
#include "kernels/device/device.h"
#include "parallel/mpi/communicator.h"

namespace chaski {

// As choose_device, for processes that train together, and so all on GPUs, one each, or all on
// CPUs. Throws std::invalid_argument too where several GPUs are asked for and the program is built
// without NCCL.
DeviceChoice choose_job_device(const DeviceConfig& config, Communicator& communicator);

// What computes, in lines for the console: one for all the processes that say the same, with their
// ranks and host where there are several. On rank `root`; empty elsewhere. All must call it.
std::vector<std::string> describe_job_devices(Communicator& communicator, int root, Device& device,
                                              const DeviceChoice& choice);

}  // namespace chaski
