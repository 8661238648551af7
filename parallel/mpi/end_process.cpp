#include "parallel/mpi/end_process.h"

#include <cstdio>
#include <exception>
#include <unistd.h>

namespace chaski {
namespace {

// The first line of what is being handled; empty where nothing is.
std::string handled_error() {
  try {
    if (const std::exception_ptr current = std::current_exception()) {
      std::rethrow_exception(current);
    }
  } catch (const std::exception& error) {
    const std::string what = error.what();
    return what.substr(0, what.find('\n'));
  } catch (...) {
    return "an unknown exception";
  }
  return "";
}

}  // namespace

void end_process(const std::string& what) noexcept {
  const std::string cause = handled_error();
  std::string text = "chaski: error: " + what + "\n";
  if (!cause.empty()) text = "chaski: error: " + cause + "\n" + text;
  std::fflush(stdout);
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
  _exit(1);
}

}  // namespace chaski
