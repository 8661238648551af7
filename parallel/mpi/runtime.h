#pragma once

#include <chrono>
#include <mpi.h>
#include <optional>
#include <string>

namespace chaski {

// The process's MPI session: at most one per process, started before anything else that uses MPI.
// Works without mpirun (one process). SIGPIPE is ignored, because a peer that dies over TCP would
// otherwise take this process along. Errors are returned, not fatal.
class MpiRuntime {
 public:
  // Throws std::runtime_error when MPI cannot start.
  MpiRuntime(int* argc, char*** argv);
  MpiRuntime() : MpiRuntime(nullptr, nullptr) {}
  // Leaves MPI as finish() does.
  ~MpiRuntime();
  MpiRuntime(const MpiRuntime&) = delete;
  MpiRuntime& operator=(const MpiRuntime&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  // One line for the start banner, e.g. "Open MPI 5.0.11, survives failures: no (mpirun --with-ft
  // ulfm)".
  std::string description() const;
  static std::string library_version();  // "Open MPI 5.0.11"; works before MPI is started
  static std::string host_name();        // "unknown" where the system does not tell; likewise
  static bool built_with_recovery();     // ULFM was there when this was compiled
  // ULFM is compiled in and switched on for this run (mpirun --with-ft ulfm).
  bool survives_failures() const { return survives_failures_; }

  // True when all processes call it within the limit; false when some do not. For main's error
  // path: an error that all processes share is reported by one of them, then all leave by
  // finish(); an error of a few ends the job by abort(). Only the first call of a run counts.
  bool all_failed(std::chrono::milliseconds limit);

  // The lowest rank that is not known to be dead: who says, after all_failed(), what all share.
  int spokesman() const;

  // Ends the session. In good order (exit_code 0) it waits for the other processes as long as they
  // work; after an error at most `limit`, then it ends them all. Those that died are not waited
  // for. When MPI_Finalize does not return within `limit`, or cannot because of the dead, the
  // process ends here with `exit_code`.
  void finish(int exit_code, std::chrono::milliseconds limit = std::chrono::seconds(20)) noexcept;
  // Ends all processes of the job at once.
  [[noreturn]] void abort(int exit_code) noexcept;

 private:
  bool arrive(MPI_Comm comm, std::optional<std::chrono::milliseconds> limit) noexcept;

  // Barriers of their own, so that those who leave in order and those who fail do not meet.
  MPI_Comm finish_comm_ = MPI_COMM_NULL;
  MPI_Comm error_comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  bool survives_failures_ = false;
  bool finished_ = false;
};

}  // namespace chaski
