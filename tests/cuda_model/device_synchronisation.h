#pragma once

// Barriers, votes, shuffles (part of device.h).

#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

namespace chaski::cuda_model {

enum class BlockOperation { kBarrier, kBarrierOr, kBarrierAnd, kBarrierCount };

/// Waits for every thread of the block at the same place; the predicates of all, combined.
int block_barrier(BlockOperation operation, int predicate, const std::source_location& site);

enum class WarpOperation {
  kSync,
  kShuffle,
  kBallot,
  kAny,
  kAll,
  kMatchAny,
  kMatchAll,
  kAddUnsigned,
  kMinUnsigned,
  kMaxUnsigned,
  kMinSigned,
  kMaxSigned,
  kAnd,
  kOr,
  kXor,
};

/// Waits for all lanes of `mask` at the same place. `value` is this lane's; `source` the lane that
/// a shuffle reads. Returns what the operation gives this lane.
std::uint64_t warp_exchange(WarpOperation operation, unsigned mask, std::uint64_t value, int source,
                            const std::source_location& site);

/// This thread's lane, 0 … 31.
int lane();

template <typename T>
std::uint64_t to_bits(T value) {
  static_assert(std::is_trivially_destructible_v<T> && sizeof(T) <= 8);  // __nv_bfloat162 too
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(std::uint64_t bits) {
  T value;
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

template <typename T>
T shuffle(unsigned mask, T value, int source, const std::source_location& site) {
  return from_bits<T>(warp_exchange(WarpOperation::kShuffle, mask, to_bits(value), source, site));
}

}  // namespace chaski::cuda_model

#define CHASKI_CUDA_MODEL_SITE std::source_location site = std::source_location::current()

inline void __syncthreads(CHASKI_CUDA_MODEL_SITE) {
  chaski::cuda_model::block_barrier(chaski::cuda_model::BlockOperation::kBarrier, 0, site);
}
inline int __syncthreads_or(int predicate, CHASKI_CUDA_MODEL_SITE) {
  return chaski::cuda_model::block_barrier(chaski::cuda_model::BlockOperation::kBarrierOr,
                                           predicate, site);
}
inline int __syncthreads_and(int predicate, CHASKI_CUDA_MODEL_SITE) {
  return chaski::cuda_model::block_barrier(chaski::cuda_model::BlockOperation::kBarrierAnd,
                                           predicate, site);
}
inline int __syncthreads_count(int predicate, CHASKI_CUDA_MODEL_SITE) {
  return chaski::cuda_model::block_barrier(chaski::cuda_model::BlockOperation::kBarrierCount,
                                           predicate, site);
}
inline void __syncwarp(unsigned mask = 0xffffffffU, CHASKI_CUDA_MODEL_SITE) {
  chaski::cuda_model::warp_exchange(chaski::cuda_model::WarpOperation::kSync, mask, 0, 0, site);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CHASKI_CUDA_MODEL_SITE) {
  const int segment = chaski::cuda_model::lane() & ~(width - 1);
  return chaski::cuda_model::shuffle(mask, value, segment + (source & (width - 1)), site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CHASKI_CUDA_MODEL_SITE) {
  const int lane = chaski::cuda_model::lane();
  const int source = lane - static_cast<int>(delta);
  const int segment = lane & ~(width - 1);
  return chaski::cuda_model::shuffle(mask, value, source < segment ? lane : source, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CHASKI_CUDA_MODEL_SITE) {
  const int lane = chaski::cuda_model::lane();
  const int source = lane + static_cast<int>(delta);
  const int end = (lane & ~(width - 1)) + width;
  return chaski::cuda_model::shuffle(mask, value, source >= end ? lane : source, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, CHASKI_CUDA_MODEL_SITE) {
  const int lane = chaski::cuda_model::lane();
  const int source = lane ^ lane_mask;
  const int end = (lane & ~(width - 1)) + width;
  return chaski::cuda_model::shuffle(mask, value, source >= end ? lane : source, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, CHASKI_CUDA_MODEL_SITE) {
  return static_cast<unsigned>(chaski::cuda_model::warp_exchange(
      chaski::cuda_model::WarpOperation::kBallot, mask, predicate != 0, 0, site));
}
inline int __any_sync(unsigned mask, int predicate, CHASKI_CUDA_MODEL_SITE) {
  return static_cast<int>(chaski::cuda_model::warp_exchange(chaski::cuda_model::WarpOperation::kAny,
                                                            mask, predicate != 0, 0, site));
}
inline int __all_sync(unsigned mask, int predicate, CHASKI_CUDA_MODEL_SITE) {
  return static_cast<int>(chaski::cuda_model::warp_exchange(chaski::cuda_model::WarpOperation::kAll,
                                                            mask, predicate != 0, 0, site));
}
/// Which lanes happen to run together is nothing to rely on: here each runs alone.
inline unsigned __activemask() {
  return 1U << chaski::cuda_model::lane();
}

template <typename T>
unsigned __match_any_sync(unsigned mask, T value, CHASKI_CUDA_MODEL_SITE) {
  return static_cast<unsigned>(
      chaski::cuda_model::warp_exchange(chaski::cuda_model::WarpOperation::kMatchAny, mask,
                                        chaski::cuda_model::to_bits(value), 0, site));
}
template <typename T>
unsigned __match_all_sync(unsigned mask, T value, int* predicate, CHASKI_CUDA_MODEL_SITE) {
  const auto lanes = static_cast<unsigned>(
      chaski::cuda_model::warp_exchange(chaski::cuda_model::WarpOperation::kMatchAll, mask,
                                        chaski::cuda_model::to_bits(value), 0, site));
  *predicate = lanes != 0;
  return lanes;
}

#define CHASKI_CUDA_MODEL_REDUCE(name, type, operation)                           \
  inline type name(unsigned mask, type value, CHASKI_CUDA_MODEL_SITE) {           \
    return static_cast<type>(chaski::cuda_model::warp_exchange(                   \
        chaski::cuda_model::WarpOperation::operation, mask,                       \
        static_cast<std::uint64_t>(static_cast<std::uint32_t>(value)), 0, site)); \
  }
CHASKI_CUDA_MODEL_REDUCE(__reduce_add_sync, unsigned, kAddUnsigned)
CHASKI_CUDA_MODEL_REDUCE(__reduce_add_sync, int, kAddUnsigned)
CHASKI_CUDA_MODEL_REDUCE(__reduce_min_sync, unsigned, kMinUnsigned)
CHASKI_CUDA_MODEL_REDUCE(__reduce_min_sync, int, kMinSigned)
CHASKI_CUDA_MODEL_REDUCE(__reduce_max_sync, unsigned, kMaxUnsigned)
CHASKI_CUDA_MODEL_REDUCE(__reduce_max_sync, int, kMaxSigned)
CHASKI_CUDA_MODEL_REDUCE(__reduce_and_sync, unsigned, kAnd)
CHASKI_CUDA_MODEL_REDUCE(__reduce_or_sync, unsigned, kOr)
CHASKI_CUDA_MODEL_REDUCE(__reduce_xor_sync, unsigned, kXor)
#undef CHASKI_CUDA_MODEL_REDUCE
#undef CHASKI_CUDA_MODEL_SITE
