#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace chaski {

// The least number of insertions, deletions, substitutions and swaps of neighbours that turn one
// word into the other (optimal string alignment), letters compared without regard to case.
std::size_t edit_distance(std::string_view a, std::string_view b);

// The candidate nearest to a mistyped word, the first of several; empty where none is near enough
// to be what was meant (more than a third of the letters differ).
std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace chaski
