#pragma once

#include <string>

namespace chaski {

std::string program_version();  // "0.1.0"
std::string program_commit();  // "1a2b3c4d5e6f", "…-dirty" with uncommitted changes, or "unknown"
std::string version_line();    // "chaski 0.1.0 (commit 1a2b3c4d5e6f)", for files made by it
// What `chaski --version` prints: program, commit, compiler, instruction set, libraries; one a
// line.
std::string version_text();

}  // namespace chaski
