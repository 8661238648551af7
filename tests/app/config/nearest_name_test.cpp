#include "app/config/nearest_name.h"

#include <algorithm>
#include <gtest/gtest.h>

namespace chaski {
namespace {

// The definition itself, without a table.
std::size_t distance_by_recursion(const std::string& a, const std::string& b) {
  if (a.empty()) return b.size();
  if (b.empty()) return a.size();
  const std::string a1 = a.substr(1), b1 = b.substr(1);
  std::size_t least = std::min({distance_by_recursion(a1, b) + 1, distance_by_recursion(a, b1) + 1,
                                distance_by_recursion(a1, b1) + (a[0] != b[0])});
  if (a.size() > 1 && b.size() > 1 && a[0] == b[1] && a[1] == b[0]) {
    least = std::min(least, distance_by_recursion(a.substr(2), b.substr(2)) + 1);
  }
  return least;
}

TEST(EditDistance, AgreesWithItsDefinition) {
  const std::vector<std::string> words = {"",     "a",    "ab",    "ba",    "abc",   "acb",
                                          "cabd", "xabc", "abcab", "bacba", "aabbc", "steps"};
  for (const std::string& a : words) {
    for (const std::string& b : words) {
      EXPECT_EQ(edit_distance(a, b), distance_by_recursion(a, b)) << a << " " << b;
    }
  }
}

TEST(EditDistance, DisregardsCase) {
  EXPECT_EQ(edit_distance("Train", "tRAIN"), 0u);
}

TEST(NearestName, FindsWhatWasMeant) {
  const std::vector<std::string> names = {"train", "tokenize", "tokenizer", "eval"};
  EXPECT_EQ(nearest_name("trian", names), "train");
  EXPECT_EQ(nearest_name("tokenise", names), "tokenize");
  EXPECT_EQ(nearest_name("tokeniser", names), "tokenizer");
  EXPECT_EQ(nearest_name("evla", names), "eval");
}

TEST(NearestName, KeepsSilentWhereNothingIsNear) {
  EXPECT_EQ(nearest_name("frobnicate", {"train", "eval"}), "");
  EXPECT_EQ(nearest_name("x", {}), "");
}

}  // namespace
}  // namespace chaski
