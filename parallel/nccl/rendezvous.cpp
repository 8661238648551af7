#include "parallel/nccl/rendezvous.h"

#include <algorithm>
#include <utility>

namespace chaski {
namespace {

// Of this process's rendezvous, whichever group they are of: an answer to another group's cannot be
// taken for one of this.
std::int64_t next_number() {
  static std::int64_t last = 0;
  return ++last;
}

}  // namespace

struct Rendezvous::PendingMessage {
  int peer = -1;
  Message message;
  Request request;
};

Rendezvous::Rendezvous(Communicator& communicator, std::vector<int> ranks, int tag)
    : communicator_(communicator),
      tag_(tag),
      is_first_(!ranks.empty() && ranks.front() == communicator.rank()) {
  for (const int rank : ranks) {
    if (rank == communicator.rank() || (!is_first_ && rank != ranks.front())) continue;
    incoming_.push_back(std::make_unique<PendingMessage>());
    incoming_.back()->peer = rank;
  }
}

Rendezvous::~Rendezvous() = default;

Rendezvous::Message Rendezvous::receive(PendingMessage& pending) {
  if (!pending.request.active()) {
    pending.request =
        communicator_.irecv(&pending.message, sizeof pending.message, pending.peer, tag_);
  }
  communicator_.wait(pending.request);
  return pending.message;
}

void Rendezvous::send(int to, const Message& message) {
  sent_.push_back(std::make_unique<PendingMessage>());
  PendingMessage& pending = *sent_.back();
  pending.message = message;
  pending.request = communicator_.isend(&pending.message, sizeof pending.message, to, tag_);
}

void Rendezvous::forget_sent() {
  std::erase_if(sent_,
                [this](const auto& pending) { return communicator_.test(pending->request); });
}

Rendezvous::Subject Rendezvous::agree(const std::function<Subject()>& make) {
  forget_sent();
  if (is_first_) {
    const std::int64_t number = next_number();
    for (const auto& pending : incoming_) send(pending->peer, {Kind::question, number, {}});
    for (const auto& pending : incoming_) {
      while (receive(*pending).number != number) {
      }
    }
    const Subject subject = make();
    for (const auto& pending : incoming_) send(pending->peer, {Kind::subject, number, subject});
    return subject;
  }
  PendingMessage& pending = *incoming_.front();
  std::int64_t answered = 0;
  while (true) {
    const Message message = receive(pending);
    if (message.kind == Kind::question) {
      answered = message.number;
      send(pending.peer, {Kind::answer, answered, {}});
    } else if (message.number == answered) {
      return message.subject;
    }
  }
}

}  // namespace chaski
