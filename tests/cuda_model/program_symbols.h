#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace chaski::cuda_model {

/// A `__shared__` variable of the running program.
struct SharedVariable {
  unsigned char* address;
  std::size_t bytes;
  std::string name;
  bool external;  // merged by the linker: without red zones
};

/// All of them, by address. Read from the program's own symbol table, so it must not be stripped;
/// those of shared libraries are not seen.
const std::vector<SharedVariable>& shared_variables();

/// The readable name of a function of the program, or its address.
std::string function_name(const void* function);

}  // namespace chaski::cuda_model
