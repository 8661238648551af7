#pragma once

#include <exception>
#include <string>

namespace chaski {

inline constexpr int kRunFailed = 1;   // exit code of what went wrong at run time
inline constexpr int kWrongInput = 2;  // of a wrong command line, config or kind of file

// An error as the program reports it.
struct ProgramError {
  std::string message;  // one line
  std::string hint;     // one line, may be empty
  int exit_code = kRunFailed;
};
ProgramError describe_error(const std::exception& error);

// "chaski: error: …\nhint: …\n" on standard error, in one write.
void print_error(const ProgramError& error);

// Prints the error on one of the processes that have it and ends what must be ended: an error that
// all processes share is printed once and all leave with its exit code; an error of a few ends the
// whole job. Returns the exit code for main, if at all.
int report_error(const ProgramError& error);
// The launcher ends all processes when one leaves with an error, so that what rank 0 has to say
// could be lost: the others wait here for their end, or for 3 s where rank 0 has nothing to say.
void let_first_process_speak();
// For an error that every process is sure to have (the command line).
int report_shared_error(const ProgramError& error);

// An exception that leaves a thread is printed and ends the process with kRunFailed.
void install_terminate_handler();

}  // namespace chaski
