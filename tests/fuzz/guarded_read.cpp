#include "tests/fuzz/guarded_read.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <gtest/gtest.h>
#include <map>
#include <signal.h>
#include <stdexcept>
#include <sys/time.h>
#include <unistd.h>

// HDF5 1.10 loses memory whenever it finds a file damaged; leaks of the readers themselves are
// found by the tests of the `asan` preset. An allocation that is too large to be true ends the
// process.
extern "C" const char* __asan_default_options() {
  return "detect_leaks=0:allocator_may_return_null=0:max_allocation_size_mb=4096";
}
// The sanitizers' interface, whose header files GCC does not have.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*on_allocation)(const volatile void*,
                                                                               std::size_t),
                                                         void (*on_release)(const volatile void*));
extern "C" std::size_t __sanitizer_get_allocated_size(const volatile void* memory);
extern "C" void __sanitizer_set_death_callback(void (*callback)());
extern "C" const char* __ubsan_default_options() {
  return "print_stacktrace=1";
}

namespace chaski {
namespace {

namespace fs = std::filesystem;

constexpr int kSecondsPerInput = 10;

std::atomic<bool> counting{false};
std::atomic<std::int64_t> live_bytes{0};
std::atomic<std::int64_t> most_bytes{0};

void on_allocation(const volatile void*, std::size_t size) {
  if (!counting) return;
  const std::int64_t live = live_bytes += static_cast<std::int64_t>(size);
  if (live > most_bytes) most_bytes = live;
}

void on_release(const volatile void* memory) {
  if (counting && memory != nullptr)
    live_bytes -= static_cast<std::int64_t>(__sanitizer_get_allocated_size(memory));
}

// The path of the input that is being read, for handlers, which must not allocate.
char current_input[4096];

void tell_input() {
  const char text[] = "\nthe input that the reader failed on is ";
  for (const char* part : {text, static_cast<const char*>(current_input), "\n"})
    if (::write(STDERR_FILENO, part, std::strlen(part)) < 0) return;
}

void on_alarm(int) {
  tell_input();
  const char text[] = "the reader took more than ten seconds\n";
  if (::write(STDERR_FILENO, text, sizeof(text) - 1) < 0) ::_exit(2);
  ::_exit(1);
}

void set_alarm(int seconds) {
  itimerval timer{};
  timer.it_value.tv_sec = seconds;
  ::setitimer(ITIMER_REAL, &timer, nullptr);
}

void install_once() {
  static const bool installed = [] {
    __sanitizer_install_malloc_and_free_hooks(on_allocation, on_release);
    __sanitizer_set_death_callback(tell_input);
    ::signal(SIGALRM, on_alarm);
    fs::create_directories(failures_folder());
    return true;
  }();
  static_cast<void>(installed);
}

// How many inputs each reader was given: printed at the end, for those who want to know what a
// passed test has tried.
class InputCounts : public testing::Environment {
 public:
  static void add(const std::string& reader) { ++counts()[reader]; }

  void TearDown() override {
    std::int64_t all = 0;
    for (const auto& [reader, count] : counts()) {
      fmt::print("{:>8} inputs for the reader of {}\n", count, reader);
      all += count;
    }
    fmt::print("{:>8} inputs in all\n", all);
    std::fflush(stdout);
  }

 private:
  static std::map<std::string, std::int64_t>& counts() {
    static std::map<std::string, std::int64_t> counts;
    return counts;
  }
};
[[maybe_unused]] testing::Environment* const input_counts =
    testing::AddGlobalTestEnvironment(new InputCounts);

bool is_one_line_and_a_hint(const std::string& text) {
  const std::size_t end = text.find('\n');
  if (end == std::string::npos) return !text.empty();
  return end > 0 && text.compare(end, 7, "\nhint: ") == 0 &&
         text.find('\n', end + 1) == std::string::npos;
}

// What is wrong with how `read` ended; empty when nothing is.
std::string fault_of(const std::function<void()>& read, bool& was_read) {
  std::string text;
  try {
    read();
    was_read = true;
    return "";
  } catch (const std::runtime_error& error) {
    text = error.what();
  } catch (const std::invalid_argument& error) {
    text = error.what();
  } catch (const std::exception& error) {
    return fmt::format("another kind of exception: {}", error.what());
  } catch (...) {
    return "an exception that is no std::exception";
  }
  return is_one_line_and_a_hint(text) ? "" : "an error that is not one line and a hint: " + text;
}

void write_input(const std::string& path, const std::string& input) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(input.data(), static_cast<std::streamsize>(input.size()));
  if (!file.flush()) throw std::runtime_error(path + ": cannot be written");
}

}  // namespace

std::string failures_folder() {
  return (fs::current_path() / "reader_fuzz_failures").string();
}

int scaled(int count) {
  const char* scale = std::getenv("CHASKI_FUZZ_SCALE");
  return scale == nullptr ? count : std::max(1, static_cast<int>(count * std::atof(scale)));
}

std::uint64_t fuzz_seed() {
  const char* seed = std::getenv("CHASKI_FUZZ_SEED");
  return seed == nullptr ? 1 : std::strtoull(seed, nullptr, 10);
}

bool read_guarded(const std::string& reader, const std::string& input,
                  const std::function<void()>& read) {
  install_once();
  InputCounts::add(reader);
  const std::string path = fmt::format("{}/{}-{}", failures_folder(), reader, ::getpid());
  write_input(path, input);
  std::strncpy(current_input, path.c_str(), sizeof(current_input) - 1);

  bool was_read = false;
  set_alarm(kSecondsPerInput);
  live_bytes = most_bytes = 0;
  counting = true;
  std::string fault = fault_of(read, was_read);
  counting = false;
  set_alarm(0);
  const std::int64_t allowed = static_cast<std::int64_t>(input.size()) + kMemoryBesideInput;
  if (most_bytes > allowed)
    fault = fmt::format("{} bytes of memory for an input of {}", most_bytes.load(), input.size());
  if (fault.empty()) {
    fs::remove(path);
  } else {
    static int failures = 0;
    const std::string kept = fmt::format("{}-{}", path, ++failures);
    fs::rename(path, kept);
    ADD_FAILURE() << reader << ": " << fault << "\nthe input is " << kept;
  }
  return was_read;
}

}  // namespace chaski
