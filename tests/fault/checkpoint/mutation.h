#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

namespace chaski {

// Damages files as disks, transfers and people who mean harm do: changed bits and bytes, numbers
// replaced by extreme ones, pieces cut out, doubled, zeroed or moved, ends cut off.
class Mutator {
 public:
  explicit Mutator(std::uint64_t seed) : random_(seed) {}

  // Always different from `original`.
  std::vector<char> mutate(const std::vector<char>& original) {
    std::vector<char> contents = original;
    do {
      for (std::uint64_t count = 1 + below(4); count > 0; --count) change(contents);
    } while (contents == original);
    return contents;
  }

 private:
  std::uint64_t below(std::uint64_t limit) { return limit == 0 ? 0 : random_() % limit; }

  void change(std::vector<char>& contents) {
    if (contents.empty()) return contents.push_back('x');
    const std::size_t at = below(contents.size());
    const std::size_t length = std::min<std::size_t>(1 + below(64), contents.size() - at);
    const auto begin = contents.begin() + static_cast<std::ptrdiff_t>(at);
    const auto end = begin + static_cast<std::ptrdiff_t>(length);
    switch (below(8)) {
      case 0:
        contents[at] = static_cast<char>(contents[at] ^ (1 << below(8)));
        break;
      case 1:
        contents[at] = static_cast<char>(random_());
        break;
      case 2:
        put_number(contents, at);
        break;
      case 3:
        contents.erase(begin, end);
        break;
      case 4: {
        const std::vector<char> piece(begin, end);
        contents.insert(begin, piece.begin(), piece.end());
        break;
      }
      case 5:
        std::fill(begin, end, below(2) == 0 ? '\0' : '\xff');
        break;
      case 6:
        contents.resize(at);
        break;
      default: {
        const std::vector<char> piece(begin, end);
        std::copy(
            piece.begin(), piece.end(),
            contents.begin() + static_cast<std::ptrdiff_t>(below(contents.size() - length + 1)));
      }
    }
  }

  void put_number(std::vector<char>& contents, std::size_t at) {
    constexpr std::uint64_t kNumbers[] = {0,
                                          1,
                                          0x7f,
                                          0xff,
                                          0x7fff,
                                          0xffff,
                                          0x7fffffff,
                                          0xffffffff,
                                          0x7fffffffffffffff,
                                          0xffffffffffffffff,
                                          1ULL << 40};
    const std::uint64_t number = kNumbers[below(std::size(kNumbers))];
    const std::size_t bytes = std::size_t{1} << below(4);
    for (std::size_t i = 0; i < bytes && at + i < contents.size(); ++i)
      contents[at + i] = static_cast<char>(number >> (8 * i));
  }

  std::mt19937_64 random_;
};

}  // namespace chaski
