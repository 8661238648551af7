#pragma once

namespace chaski {

// The cores that this process may run on: those that the launcher, the container or taskset has
// left to it; at least 1.
int usable_cores();

}  // namespace chaski
