#pragma once

#include <cstdint>

// For kernels of the CUDA backend too.
#ifdef __CUDACC__
#define CHASKI_HOST_DEVICE __host__ __device__
#else
#define CHASKI_HOST_DEVICE
#endif

// Of internal linkage: the CPU's inner loops use them too (see cpu_kernels.h).
namespace chaski {

// Four words of a counter, or the four random ones made of it.
struct PhiloxWords {
  std::uint32_t at[4];
};

// Philox4x32 with 10 rounds (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2,
// 3, SC 2011; the constants are those of the Random123 library): four random words as a pure
// function of a counter and a key.
CHASKI_HOST_DEVICE static constexpr PhiloxWords philox4x32(PhiloxWords counter, std::uint64_t key) {
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53u;
  constexpr std::uint64_t kMultiplier1 = 0xCD9E8D57u;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9u;
  constexpr std::uint32_t kWeyl1 = 0xBB67AE85u;
  constexpr int kRounds = 10;
  auto key0 = static_cast<std::uint32_t>(key);
  auto key1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < kRounds; ++round) {
    const std::uint64_t product0 = kMultiplier0 * counter.at[0];
    const std::uint64_t product1 = kMultiplier1 * counter.at[2];
    counter = {{static_cast<std::uint32_t>(product1 >> 32) ^ counter.at[1] ^ key0,
                static_cast<std::uint32_t>(product1),
                static_cast<std::uint32_t>(product0 >> 32) ^ counter.at[3] ^ key1,
                static_cast<std::uint32_t>(product0)}};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return counter;
}

// The counter of two numbers.
CHASKI_HOST_DEVICE static constexpr PhiloxWords philox_counter(std::uint64_t low,
                                                               std::uint64_t high) {
  return {{static_cast<std::uint32_t>(low), static_cast<std::uint32_t>(low >> 32),
           static_cast<std::uint32_t>(high), static_cast<std::uint32_t>(high >> 32)}};
}

}  // namespace chaski
