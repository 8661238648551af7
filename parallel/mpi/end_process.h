#pragma once

#include <string>

namespace chaski {

// Ends this process at once, with `what` and the exception in whose handler it is called on
// standard error: where MPI or a GPU may write to memory at any time and no wait for it has helped.
// Not by an exception, which would free that memory, or wait for the device, on its way.
[[noreturn]] void end_process(const std::string& what) noexcept;

}  // namespace chaski
