#include "parallel/mpi/request.h"

#include <fmt/format.h>
#include <utility>

#include "parallel/mpi/backoff.h"
#include "parallel/mpi/end_process.h"

namespace chaski {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kSendLimit{100};

// A request that ends with an error has ended.
bool ends(MPI_Request& handle) {
  int done = 0;
  if (handle != MPI_REQUEST_NULL && MPI_Test(&handle, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) {
    handle = MPI_REQUEST_NULL;
  }
  return handle == MPI_REQUEST_NULL;
}

bool ends_by(Clock::time_point deadline, MPI_Request& handle) {
  Backoff backoff;
  while (!ends(handle)) {
    if (Clock::now() > deadline) return false;
    backoff.pause();
  }
  return true;
}

bool is_finalized() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  return finalized != 0;
}

}  // namespace

Request::Request(Request&& other) noexcept
    : handle_(std::exchange(other.handle_, MPI_REQUEST_NULL)),
      more_(std::exchange(other.more_, {})),
      receives_(other.receives_),
      peer_(other.peer_) {}

Request& Request::operator=(Request&& other) noexcept {
  if (this != &other) {
    give_up();
    handle_ = std::exchange(other.handle_, MPI_REQUEST_NULL);
    more_ = std::exchange(other.more_, {});
    receives_ = other.receives_;
    peer_ = other.peer_;
  }
  return *this;
}

void Request::give_up(std::chrono::milliseconds limit) noexcept {
  if (!active() || is_finalized()) return;
  const auto start = Clock::now();
  give_up(handle_, start + (receives_ ? limit : kSendLimit));
  for (MPI_Request& part : more_) give_up(part, start + (receives_ ? limit : kSendLimit));
  more_.clear();
}

void Request::give_up(MPI_Request& part, Clock::time_point deadline) noexcept {
  if (ends(part)) return;
  if (receives_) MPI_Cancel(&part);
  if (ends_by(deadline, part)) return;
  if (receives_) {
    end_process(
        fmt::format("MPI: a message from rank {} that was given up does not end: that process or "
                    "the network to it hangs\nhint: `chaski train CONFIG --resume auto` goes on "
                    "from the last checkpoint",
                    peer_));
  }
  MPI_Request_free(&part);
}

void Request::add(MPI_Request handle) {
  if (handle_ == MPI_REQUEST_NULL) {
    handle_ = handle;
  } else {
    more_.push_back(handle);
  }
}

}  // namespace chaski
