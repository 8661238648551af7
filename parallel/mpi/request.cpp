#include "parallel/mpi/request.h"

#include <utility>

namespace chaski {

Request::Request(Request&& other) noexcept
    : handle_(std::exchange(other.handle_, MPI_REQUEST_NULL)),
      more_(std::move(other.more_)),
      peer_(other.peer_) {
  other.more_.clear();
}

Request& Request::operator=(Request&& other) noexcept {
  if (this != &other) {
    release();
    handle_ = std::exchange(other.handle_, MPI_REQUEST_NULL);
    more_.swap(other.more_);
    peer_ = other.peer_;
  }
  return *this;
}

Request::~Request() {
  release();
}

void Request::release() noexcept {
  if (!active()) return;
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized) return;
  if (handle_ != MPI_REQUEST_NULL) MPI_Request_free(&handle_);
  for (MPI_Request& part : more_) {
    if (part != MPI_REQUEST_NULL) MPI_Request_free(&part);
  }
  more_.clear();
}

void Request::add(MPI_Request handle) {
  if (handle_ == MPI_REQUEST_NULL) {
    handle_ = handle;
  } else {
    more_.push_back(handle);
  }
}

}  // namespace chaski
