#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace chaski {

// What a reader may do with any input whatever: read it, or refuse it by an exception that people
// can act on. Everything else fails the test that runs:
//  - a crash, or whatever the sanitizers see (the process ends);
//  - more than ten seconds (the process ends);
//  - more memory at a time than the input's size and kMemoryBesideInput;
//  - an exception that is neither std::runtime_error nor std::invalid_argument, or whose text is
//    not one line, perhaps with a hint below.
// Each input is written to a file before it is read. The file stays, and its path is printed, when
// the reader fails.
bool read_guarded(const std::string& reader, const std::string& input,
                  const std::function<void()>& read);  // true: read; false: refused

inline constexpr std::int64_t kMemoryBesideInput = 16 << 20;  // bytes

// Where such inputs are kept: reader_fuzz_failures/ in the current folder.
std::string failures_folder();

// So many inputs of a kind: `count`, times CHASKI_FUZZ_SCALE where it is set.
int scaled(int count);
// CHASKI_FUZZ_SEED, or 1: equal seeds make equal inputs.
std::uint64_t fuzz_seed();

}  // namespace chaski
