#include "app/step/membership.h"

#include <utility>

namespace chaski {

Membership::Membership(MpiRuntime& runtime, int num_replicas, int num_stages)
    : communicator_(std::make_unique<Communicator>(runtime)),
      roster_(Roster::initial(num_replicas, num_stages, communicator_->size())) {}

Membership::Membership(std::unique_ptr<Communicator> communicator, Roster roster)
    : communicator_(std::move(communicator)), roster_(std::move(roster)) {}

}  // namespace chaski
