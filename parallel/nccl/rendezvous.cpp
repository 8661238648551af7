#include "parallel/nccl/rendezvous.h"

#include <algorithm>
#include <utility>

namespace chaski {
namespace {

// Of this process's meetings, whichever group they are of: an answer to another group's cannot be
// taken for one of this.
std::int64_t next_number() {
  static std::int64_t last = 0;
  return ++last;
}

}  // namespace

struct Meeting::Letter {
  int peer = -1;
  Message message;
  Request request;
};

Meeting::Meeting(Communicator& communicator, std::vector<int> ranks, int tag)
    : communicator_(communicator),
      tag_(tag),
      is_first_(!ranks.empty() && ranks.front() == communicator.rank()) {
  for (const int rank : ranks) {
    if (rank == communicator.rank() || (!is_first_ && rank != ranks.front())) continue;
    incoming_.push_back(std::make_unique<Letter>());
    incoming_.back()->peer = rank;
  }
}

Meeting::~Meeting() {
  // MPI may still write to what a given-up request names.
  static auto* const kept = new std::vector<std::unique_ptr<Letter>>;
  for (auto* letters : {&incoming_, &sent_}) {
    for (std::unique_ptr<Letter>& letter : *letters) {
      if (letter->request.active()) kept->push_back(std::move(letter));
    }
  }
}

Meeting::Message Meeting::receive(Letter& letter) {
  if (!letter.request.active()) {
    letter.request = communicator_.irecv(&letter.message, sizeof letter.message, letter.peer, tag_);
  }
  communicator_.wait(letter.request);
  return letter.message;
}

void Meeting::send(int to, const Message& message) {
  sent_.push_back(std::make_unique<Letter>());
  Letter& letter = *sent_.back();
  letter.message = message;
  letter.request = communicator_.isend(&letter.message, sizeof letter.message, to, tag_);
}

void Meeting::forget_sent() {
  std::erase_if(sent_, [this](const auto& letter) { return communicator_.test(letter->request); });
}

Meeting::Subject Meeting::agree(const std::function<Subject()>& make) {
  forget_sent();
  if (is_first_) {
    const std::int64_t number = next_number();
    for (const auto& letter : incoming_) send(letter->peer, {Kind::question, number, {}});
    for (const auto& letter : incoming_) {
      while (receive(*letter).number != number) {
      }
    }
    const Subject subject = make();
    for (const auto& letter : incoming_) send(letter->peer, {Kind::subject, number, subject});
    return subject;
  }
  Letter& letter = *incoming_.front();
  std::int64_t answered = 0;
  while (true) {
    const Message message = receive(letter);
    if (message.kind == Kind::question) {
      answered = message.number;
      send(letter.peer, {Kind::answer, answered, {}});
    } else if (message.number == answered) {
      return message.subject;
    }
  }
}

}  // namespace chaski
