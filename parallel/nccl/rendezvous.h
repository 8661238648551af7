#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "parallel/mpi/communicator.h"

namespace chaski {

// How some processes learn what the first of them makes up, e.g. the id by which NCCL joins them,
// however many rendezvous each has given up before, whose messages may still be on their way.
//
// The first process asks each of the others with a number that it uses once; they answer whatever
// they are asked; and who has answered the number of this rendezvous is told. Nobody needs to have
// counted as far as another one has.
class Rendezvous {
 public:
  using Subject = std::array<char, 128>;

  // `ranks` ascending, this process among them. `tag` of the messages: no others between these
  // processes may have it.
  Rendezvous(Communicator& communicator, std::vector<int> ranks, int tag);
  ~Rendezvous();
  Rendezvous(const Rendezvous&) = delete;
  Rendezvous& operator=(const Rendezvous&) = delete;

  // All call it, and get what `make` returns on the first of them, which calls it when all have
  // come. Throws PeerFailure, or what the communicator's wait callback throws; it can be called
  // again then, once all have given up.
  Subject agree(const std::function<Subject()>& make);

 private:
  enum class Kind : std::int64_t { question, answer, subject };
  struct Message {
    Kind kind = Kind::question;
    std::int64_t number = 0;
    Subject subject{};
  };
  // A message and its place, which stays where it is until MPI is done with it.
  struct PendingMessage;

  Message receive(PendingMessage& pending);
  void send(int to, const Message& message);
  void forget_sent();

  Communicator& communicator_;
  int tag_;
  bool is_first_;
  // One for each process that is listened to: a receive that was given up gets the next message.
  std::vector<std::unique_ptr<PendingMessage>> incoming_;
  std::vector<std::unique_ptr<PendingMessage>> sent_;
};

}  // namespace chaski
