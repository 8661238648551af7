#include "fault/checkpoint/state_digest.h"

#include <algorithm>
#include <memory>
#include <xxhash.h>

#include "fault/checkpoint/frozen_tensors.h"

namespace chaski {

std::uint64_t state_digest(const ParameterSet& weights, const std::vector<NamedTensor>& optimizer) {
  constexpr std::int64_t kPiece = std::int64_t{1} << 20;
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                       XXH3_freeState);
  XXH3_64bits_reset(state.get());
  for (const TensorRecord& record : live_records(checkpoint_tensors(weights, optimizer, 0))) {
    XXH3_64bits_update(state.get(), record.name.data(), record.name.size());
    const std::int64_t bytes = record.shape.num_elements() * size_of(record.dtype);
    for (std::int64_t offset = 0; offset < bytes; offset += kPiece) {
      const std::int64_t count = std::min(kPiece, bytes - offset);
      XXH3_64bits_update(state.get(), record.read(offset, count), static_cast<std::size_t>(count));
    }
  }
  return XXH3_64bits_digest(state.get());
}

}  // namespace chaski
