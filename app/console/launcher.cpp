#include "app/console/launcher.h"

#include <cstdlib>
#include <initializer_list>

namespace chaski {
namespace {

const char* launcher_rank() {
  for (const char* name :
       {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID"}) {
    if (const char* value = std::getenv(name)) return value;
  }
  return nullptr;
}

}  // namespace

int launched_rank() {
  const char* rank = launcher_rank();
  return rank == nullptr ? 0 : std::atoi(rank);
}

bool is_launched() {
  return launcher_rank() != nullptr;
}

}  // namespace chaski
