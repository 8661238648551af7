#include "app/bench/text.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <random>
#include <vector>

namespace chaski {
namespace {

constexpr int kNumWords = 30000;
constexpr int kWordsPerLine = 12;
constexpr int kLinesPerParagraph = 5;

// In [0, 1), the same with every standard library.
double uniform(std::mt19937& generator) {
  return static_cast<double>(generator()) / 4294967296.0;
}

std::vector<std::string> make_words(std::mt19937& generator) {
  constexpr const char* kOnsets[] = {"b",  "c",  "d",  "f", "g",  "h", "l", "m",
                                     "n",  "p",  "r",  "s", "t",  "v", "w", "th",
                                     "st", "pr", "ch", "",  "sh", "k", "y", "qu"};
  constexpr const char* kRimes[] = {"a",  "e",  "i",  "o",   "u",   "an", "er", "in",
                                    "on", "at", "ed", "ing", "ent", "al", "is", "our"};
  std::vector<std::string> words(kNumWords);
  for (int i = 0; i < kNumWords; ++i) {
    const int syllables = 1 + static_cast<int>(std::log10(1.0 + i) * uniform(generator) + 0.5);
    for (int s = 0; s < syllables; ++s) {
      words[i] += kOnsets[generator() % std::size(kOnsets)];
      words[i] += kRimes[generator() % std::size(kRimes)];
    }
  }
  return words;
}

}  // namespace

std::string generate_text(std::int64_t bytes) {
  std::mt19937 generator(1);
  const std::vector<std::string> words = make_words(generator);
  std::string text;
  text.reserve(static_cast<std::size_t>(bytes) + 64);
  for (std::int64_t count = 1; std::ssize(text) < bytes; ++count) {
    // Rank r with a probability like 1 / r.
    const double rank = std::pow(static_cast<double>(kNumWords), uniform(generator)) - 1.0;
    text += words[static_cast<std::size_t>(std::min(rank, kNumWords - 1.0))];
    const bool line_ends = count % kWordsPerLine == 0;
    const bool paragraph_ends = count % (kWordsPerLine * kLinesPerParagraph) == 0;
    text += paragraph_ends ? ".\n\n" : line_ends ? "\n" : " ";
  }
  text += "\n";
  return text;
}

}  // namespace chaski
