#include "parallel/mpi/runtime.h"

#include <array>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <fmt/format.h>
#include <memory>
#include <mpi.h>
#include <optional>
#include <stdexcept>
#include <thread>
#include <unistd.h>

#if __has_include(<mpi-ext.h>) && defined(OPEN_MPI)
#include <mpi-ext.h>
#endif

namespace chaski {
namespace {

bool recovery_switched_on() {
#ifdef OMPI_HAVE_MPI_EXT_FTMPI
  int* value = nullptr;
  int found = 0;
  MPI_Comm_get_attr(MPI_COMM_WORLD, MPIX_FT, static_cast<void*>(&value), &found);
  return found != 0 && *value != 0;
#else
  return false;
#endif
}

// A barrier; where failures are survived, one of those alive.
int start_arrival(MPI_Comm comm, [[maybe_unused]] bool survives_failures,
                  [[maybe_unused]] int* flag, MPI_Request* request) {
#ifdef OMPI_HAVE_MPI_EXT_FTMPI
  if (survives_failures) return MPIX_Comm_iagree(comm, flag, request);
#endif
  return MPI_Ibarrier(comm, request);
}

bool some_died([[maybe_unused]] MPI_Comm comm) {
  int count = 0;
#ifdef OMPI_HAVE_MPI_EXT_FTMPI
  MPI_Group dead = MPI_GROUP_NULL;
  if (MPIX_Comm_get_failed(comm, &dead) != MPI_SUCCESS) return false;
  MPI_Group_size(dead, &count);
  MPI_Group_free(&dead);
#endif
  return count > 0;
}

// Of the processes of `comm`; 0 where failures are not survived.
int lowest_alive([[maybe_unused]] MPI_Comm comm) {
  int lowest = 0;
#ifdef OMPI_HAVE_MPI_EXT_FTMPI
  MPI_Group all = MPI_GROUP_NULL;
  MPI_Group dead = MPI_GROUP_NULL;
  if (MPIX_Comm_get_failed(comm, &dead) != MPI_SUCCESS) return 0;
  MPI_Comm_group(comm, &all);
  const auto is_dead = [&](int rank) {
    int in_dead = MPI_UNDEFINED;
    MPI_Group_translate_ranks(all, 1, &rank, dead, &in_dead);
    return in_dead != MPI_UNDEFINED;
  };
  while (is_dead(lowest)) ++lowest;
  MPI_Group_free(&all);
  MPI_Group_free(&dead);
#endif
  return lowest;
}

// MPI_Finalize waits for every process of the job; after a failure it may wait for ever. The guard
// ends the process when it has not been released in time.
class ExitGuard {
 public:
  ExitGuard(int exit_code, std::chrono::milliseconds limit)
      : released_(std::make_shared<std::atomic<bool>>(false)) {
    std::thread([released = released_, exit_code, limit] {
      std::this_thread::sleep_for(limit);
      if (!released->load()) _exit(exit_code);
    }).detach();
  }
  ~ExitGuard() { released_->store(true); }

 private:
  std::shared_ptr<std::atomic<bool>> released_;
};

}  // namespace

MpiRuntime::MpiRuntime(int* argc, char*** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  int provided = 0;
  // Other threads (loader, checkpoint writer, exit guard) exist but never call MPI.
  if (MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
    throw std::runtime_error(
        "MPI does not start\nhint: is HOME set, and is mpirun of the same MPI?");
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &size_);
  survives_failures_ = recovery_switched_on();
  if (MPI_Comm_dup(MPI_COMM_WORLD, &finish_comm_) != MPI_SUCCESS ||
      MPI_Comm_dup(MPI_COMM_WORLD, &error_comm_) != MPI_SUCCESS) {
    throw std::runtime_error("MPI cannot duplicate its world communicator");
  }
}

MpiRuntime::~MpiRuntime() {
  finish(1);
}

std::string MpiRuntime::library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  MPI_Get_library_version(text, &length);
  std::string version(text, static_cast<std::size_t>(length));
  version = version.substr(0, version.find_first_of(",\n"));
  const std::string long_name = "Open MPI v";  // "Open MPI v5.0.11, package: …"
  if (version.rfind(long_name, 0) == 0) version = "Open MPI " + version.substr(long_name.size());
  while (!version.empty() && (version.back() == '\0' || version.back() == ' ')) version.pop_back();
  return version;
}

std::string MpiRuntime::host_name() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "unknown";
  return name.data();
}

bool MpiRuntime::built_with_recovery() {
#ifdef OMPI_HAVE_MPI_EXT_FTMPI
  return true;
#else
  return false;
#endif
}

std::string MpiRuntime::description() const {
  const char* recovery = "no (this MPI cannot)";
  if (survives_failures_) {
    recovery = "yes";
  } else if (built_with_recovery()) {
    recovery = "no (mpirun --with-ft ulfm switches it on)";
  }
  return fmt::format("{}, {} process{}, survives failures: {}", library_version(), size_,
                     size_ == 1 ? "" : "es", recovery);
}

bool MpiRuntime::arrive(MPI_Comm comm, std::optional<std::chrono::milliseconds> limit) noexcept {
  MPI_Request request = MPI_REQUEST_NULL;
  int flag = 1;
  if (start_arrival(comm, survives_failures_, &flag, &request) != MPI_SUCCESS) return false;
  const auto start = std::chrono::steady_clock::now();
  while (true) {
    int done = 0;
    const int code = MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (code != MPI_SUCCESS) return survives_failures_;  // the dead are named, the others are here
    if (done) return true;
    if (limit && std::chrono::steady_clock::now() - start > *limit) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

bool MpiRuntime::all_failed(std::chrono::milliseconds limit) {
  return size_ == 1 || arrive(error_comm_, limit);
}

int MpiRuntime::spokesman() const {
  return survives_failures_ ? lowest_alive(error_comm_) : 0;
}

void MpiRuntime::finish(int exit_code, std::chrono::milliseconds limit) noexcept {
  if (finished_) return;
  finished_ = true;
  std::fflush(nullptr);
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized) return;
  if (size_ > 1) {
    std::optional<std::chrono::milliseconds> patience;
    if (exit_code != 0) patience = limit;
    if (!arrive(finish_comm_, patience)) abort(exit_code == 0 ? 1 : exit_code);
    // MPI_Finalize would wait for the dead.
    if (some_died(finish_comm_)) _exit(exit_code);
  }
  const ExitGuard guard(exit_code, limit);
  MPI_Finalize();
}

void MpiRuntime::abort(int exit_code) noexcept {
  std::fflush(nullptr);
  const ExitGuard guard(exit_code, std::chrono::seconds(5));
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  _exit(exit_code);
}

}  // namespace chaski
