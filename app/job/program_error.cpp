#include "app/job/program_error.h"

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <fmt/format.h>
#include <new>
#include <stdexcept>
#include <thread>
#include <unistd.h>

#include "app/console/launcher.h"
#include "app/job/mpi_session.h"
#include "fault/checkpoint/file_system.h"
#include "parallel/mpi/communicator.h"

namespace chaski {
namespace {

using namespace std::chrono_literals;

// How long a process waits for the others to fail too. Longer than the skew with which processes
// meet the same error, shorter than anybody's patience.
constexpr std::chrono::milliseconds kSharedErrorLimit = 3s;

std::string one_line(std::string text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  for (std::size_t at; (at = text.find('\n')) != std::string::npos;) text.replace(at, 1, "; ");
  return text;
}

ProgramError split(const std::string& what, int exit_code) {
  const std::string mark = "\nhint: ";
  const std::size_t hint = what.find(mark);
  if (hint == std::string::npos) return {one_line(what), "", exit_code};
  return {one_line(what.substr(0, hint)), one_line(what.substr(hint + mark.size())), exit_code};
}

// What helps against an operation that the system refused; empty where nothing is known.
const char* hint_against(int error_number) {
  switch (error_number) {
    case EACCES:
    case EPERM:
      return "check the permissions of it and of its folders";
    case ENOSPC:
    case EDQUOT:
      return "free some space on that disk";
    case EROFS:
      return "that disk can only be read; choose a folder on another";
    case EMFILE:
    case ENFILE:
      return "raise the number of files that a process may open (`ulimit -n`)";
    case ENAMETOOLONG:
      return "choose a shorter path";
    case EIO:
      return "the disk or the network to it fails; the system's log tells more";
    default:
      return "";
  }
}

[[noreturn]] void on_terminate() {
  ProgramError error{"ended by an unknown exception", "", kRunFailed};
  try {
    if (const std::exception_ptr current = std::current_exception()) {
      std::rethrow_exception(current);
    }
    error.message = "ended without an exception";
  } catch (const std::exception& exception) {
    error = describe_error(exception);
  } catch (...) {
  }
  print_error(error);
  // Not by MPI_Abort, which only the thread that uses MPI may call: mpirun ends the job when a
  // process leaves like this.
  _exit(kRunFailed);
}

}  // namespace

ProgramError describe_error(const std::exception& error) {
  if (dynamic_cast<const std::bad_alloc*>(&error)) {
    return {"there is not enough memory",
            "a smaller parallel.micro_batch, or model.recompute = \"block\", needs less",
            kRunFailed};
  }
  if (dynamic_cast<const std::invalid_argument*>(&error)) return split(error.what(), kWrongInput);
  ProgramError described = split(error.what(), kRunFailed);
  if (dynamic_cast<const CommunicationError*>(&error) && described.hint.empty()) {
    described.hint =
        "a process or the network has failed; `chaski train CONFIG --resume auto` goes on from the "
        "last checkpoint";
  }
  const auto* file_error = dynamic_cast<const FileError*>(&error);
  if (file_error && described.hint.empty()) {
    described.hint = hint_against(file_error->error_number());
  }
  if (dynamic_cast<const std::logic_error*>(&error)) {
    described.message = "internal error: " + described.message;
  }
  return described;
}

void print_error(const ProgramError& error) {
  std::fflush(stdout);
  std::string text = fmt::format("chaski: error: {}\n", error.message);
  if (!error.hint.empty()) text += fmt::format("hint: {}\n", error.hint);
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

void let_first_process_speak() {
  if (launched_rank() > 0) std::this_thread::sleep_for(kSharedErrorLimit);
}

int report_shared_error(const ProgramError& error) {
  let_first_process_speak();
  if (launched_rank() == 0) print_error(error);
  return error.exit_code;
}

int report_error(const ProgramError& error) {
  MpiRuntime* mpi = started_mpi_session();
  if (!mpi) {
    let_first_process_speak();
    print_error(error);
    return error.exit_code;
  }
  if (mpi->size() == 1 || mpi->all_failed(kSharedErrorLimit)) {
    if (mpi->rank() == mpi->spokesman()) print_error(error);
    mpi->finish(error.exit_code);
    return error.exit_code;
  }
  ProgramError of_rank = error;
  of_rank.message = fmt::format("rank {}: {}", mpi->rank(), error.message);
  print_error(of_rank);
  mpi->abort(error.exit_code);
}

void install_terminate_handler() {
  std::set_terminate(on_terminate);
}

}  // namespace chaski
