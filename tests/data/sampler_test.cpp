#include "data/sampler.h"

#include <cmath>
#include <gtest/gtest.h>
#include <set>
#include <vector>

namespace chaski {
namespace {

std::vector<std::uint64_t> order(std::uint64_t n, std::uint64_t key) {
  std::vector<std::uint64_t> result(n);
  for (std::uint64_t i = 0; i < n; ++i) result[i] = permute(i, n, key);
  return result;
}

TEST(SamplerTest, IsABijection) {
  std::vector<std::uint64_t> sizes = {1000, 1023, 1024, 1025, 4097, 65535, 65536, 65537, 100003};
  for (std::uint64_t n = 1; n <= 300; ++n) sizes.push_back(n);
  for (const std::uint64_t n : sizes) {
    for (const std::uint64_t key : {0ull, 1ull, 0xFFFFFFFFFFFFFFFFull}) {
      std::vector<bool> seen(n);
      for (const std::uint64_t value : order(n, key)) {
        ASSERT_LT(value, n);
        ASSERT_FALSE(seen[value]) << n << " " << key;
        seen[value] = true;
      }
    }
  }
}

TEST(SamplerTest, StaysInHugeRanges) {
  for (const std::uint64_t n : {(1ull << 40) - 87, (1ull << 63) + 1, ~0ull}) {
    std::set<std::uint64_t> seen;
    for (std::uint64_t i = 0; i < 1000; ++i) {
      const std::uint64_t value = permute(n - 1 - i, n, 5);
      ASSERT_LT(value, n);
      seen.insert(value);
    }
    EXPECT_EQ(seen.size(), 1000u);
  }
}

TEST(SamplerTest, KeysGiveUnrelatedOrders) {
  constexpr std::uint64_t kSize = 10000;
  const auto a = order(kSize, 1), b = order(kSize, 2);
  int equal = 0, fixed = 0;
  for (std::uint64_t i = 0; i < kSize; ++i) {
    equal += a[i] == b[i];
    fixed += a[i] == i;
  }
  // Both are about Poisson with mean 1.
  EXPECT_LE(equal, 8);
  EXPECT_LE(fixed, 8);
}

TEST(SamplerTest, PlacesAreUniform) {
  // Where three indices go over many keys: chi-square with 49 degrees of freedom; 85.4 is the
  // 0.1 % quantile.
  constexpr int kBins = 50, kKeys = 20000;
  for (const std::uint64_t index : {0, 17, 49}) {
    std::vector<int> count(kBins);
    for (int key = 0; key < kKeys; ++key) ++count[permute(index, kBins, key)];
    double chi_square = 0.0;
    constexpr double kExpected = static_cast<double>(kKeys) / kBins;
    for (const int c : count) chi_square += (c - kExpected) * (c - kExpected) / kExpected;
    EXPECT_LT(chi_square, 85.4) << index;
  }
}

TEST(SamplerTest, NeighboursAreScattered) {
  constexpr std::uint64_t kSize = 20000;
  const auto a = order(kSize, 9);
  double product = 0.0, square = 0.0;
  const double mean = (kSize - 1) / 2.0;
  for (std::uint64_t i = 0; i + 1 < kSize; ++i) {
    product += (static_cast<double>(a[i]) - mean) * (static_cast<double>(a[i + 1]) - mean);
    square += (static_cast<double>(a[i]) - mean) * (static_cast<double>(a[i]) - mean);
  }
  EXPECT_LT(std::abs(product / square), 4.0 / std::sqrt(static_cast<double>(kSize)));
}

TEST(SamplerTest, EveryEpochReadsEverySequenceInAnOrderOfItsOwn) {
  constexpr std::uint64_t kSequences = 97;
  std::vector<std::vector<std::uint64_t>> epochs(4);
  for (std::uint64_t sample = 0; sample < 4 * kSequences; ++sample) {
    const SequencePosition position = sequence_at(sample, kSequences, 7, true);
    ASSERT_EQ(position.epoch, sample / kSequences);
    epochs[position.epoch].push_back(position.sequence);
  }
  for (std::size_t i = 0; i < epochs.size(); ++i) {
    EXPECT_EQ(std::set<std::uint64_t>(epochs[i].begin(), epochs[i].end()).size(), kSequences);
    for (std::size_t j = 0; j < i; ++j) EXPECT_NE(epochs[i], epochs[j]);
  }
  std::vector<std::uint64_t> other;
  for (std::uint64_t s = 0; s < kSequences; ++s) {
    other.push_back(sequence_at(s, kSequences, 8, true).sequence);
  }
  EXPECT_NE(other, epochs[0]);
}

TEST(SamplerTest, WithoutShuffleSequencesComeInOrder) {
  for (std::uint64_t sample = 0; sample < 30; ++sample) {
    EXPECT_EQ(sequence_at(sample, 10, 3, false).sequence, sample % 10);
  }
}

}  // namespace
}  // namespace chaski
