#include "app/step/membership.h"

#include <utility>

namespace chaski {

Roster initial_roster(const TrainConfig& config, int num_processes) {
  const RunLayout layout = resolve_layout(config, num_processes);
  return Roster::initial(static_cast<int>(layout.num_replicas), static_cast<int>(layout.num_stages),
                         num_processes);
}

Membership::Membership(MpiRuntime& runtime, const TrainConfig& config)
    : Membership(std::make_unique<Communicator>(runtime), initial_roster(config, runtime.size())) {}

Membership::Membership(MpiRuntime& runtime)
    : Membership(std::make_unique<Communicator>(runtime),
                 Roster::initial(runtime.size(), 1, runtime.size())) {}

Membership::Membership(std::unique_ptr<Communicator> communicator, Roster roster)
    : communicator_(std::move(communicator)), roster_(std::move(roster)) {}

}  // namespace chaski
