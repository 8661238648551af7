#pragma once

#include <cstdint>
#include <string>

namespace chaski {

// About `bytes` of made-up text, the same every time: words of syllables, the frequent ones short
// (Zipf's law), in lines and paragraphs.
std::string generate_text(std::int64_t bytes);

}  // namespace chaski
