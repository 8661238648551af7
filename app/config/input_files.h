#pragma once

#include <string>
#include <vector>

namespace chaski {

// The files that the user named by `key` (a config key or an option, for errors): paths as they
// are, globs (`*`, `?`, `[…]`) as their sorted matches, all in this order and none twice. Throws
// std::invalid_argument naming key and file when one is missing, a folder or not readable, or a
// pattern matches nothing. Reads no contents.
std::vector<std::string> resolve_input_files(const std::string& key,
                                             const std::vector<std::string>& patterns);

// One file by its path; errors as above.
void check_input_file(const std::string& key, const std::string& path);

}  // namespace chaski
