// A peer begins to send and is never heard of again. Who gives up the message, which may still
// arrive at any time, must not go on: he says so and ends.
#include <chrono>
#include <cstdio>
#include <mpi.h>
#include <stdexcept>
#include <thread>
#include <vector>

#include "parallel/mpi/communicator.h"

namespace chaski {
namespace {

constexpr int kTag = 1;
constexpr auto kLimit = std::chrono::milliseconds(500);

void run(Communicator& communicator) {
  // Too long to be sent before it is asked for.
  std::vector<char> memory(std::size_t{64} << 20);
  const auto bytes = static_cast<std::int64_t>(memory.size());
  if (communicator.rank() == 1) {
    const Request sent = communicator.isend(memory.data(), bytes, 0, kTag);
    std::this_thread::sleep_for(std::chrono::seconds(60));
    return;
  }
  Request request = communicator.irecv(memory.data(), bytes, 1, kTag);
  const auto arriving = std::chrono::steady_clock::now() + kLimit;
  while (std::chrono::steady_clock::now() < arriving) communicator.test(request);
  try {
    throw std::runtime_error("there is not enough memory");
  } catch (const std::exception&) {
    request.give_up(kLimit);
  }
  std::puts("went on");
}

}  // namespace
}  // namespace chaski

int main(int argc, char** argv) {
  chaski::MpiRuntime runtime(&argc, &argv);
  chaski::Communicator communicator(runtime);
  chaski::run(communicator);
  runtime.abort(0);
}
