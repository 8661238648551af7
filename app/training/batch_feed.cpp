#include "app/training/batch_feed.h"

#include <algorithm>
#include <set>
#include <utility>

namespace chaski {

BatchFeed::BatchFeed(Device& device, std::shared_ptr<const SequenceDataset> data,
                     const LoaderOptions& options, std::int64_t micro_batches)
    : device_(device), data_(std::move(data)), options_(options), micro_batches_(micro_batches) {}

void BatchFeed::adopt(const Membership& membership) {
  const Roster& roster = membership.roster();
  std::set<int> hosted;
  for (const Slot slot : roster.slots_of(membership.process())) hosted.insert(slot.replica);
  std::erase_if(replicas_, [&](const auto& entry) { return !hosted.contains(entry.first); });
  for (const int index : hosted) {
    Replica& replica = replicas_[index];
    if (replica.loader != nullptr) continue;
    const RowRange rows = roster.rows_of(index, options_.global_batch);
    LoaderOptions options = options_;
    options.first_row = rows.begin;
    options.num_rows = rows.count;
    replica.loader = std::make_unique<Loader>(data_, options);
    for (std::int64_t i = 0; i < micro_batches_; ++i) {
      replica.batches.emplace_back(device_, options_.micro_batch, data_->sequence_length());
    }
  }
}

void BatchFeed::upload(std::int64_t step) {
  for (auto& [index, replica] : replicas_) {
    for (std::int64_t i = 0; i < micro_batches_; ++i) {
      const Batch& batch = replica.loader->get(static_cast<std::uint64_t>(step), i);
      replica.batches[static_cast<std::size_t>(i)].upload(batch, options_.reset_at_documents);
    }
  }
}

BatchSource BatchFeed::source() const {
  return [this](int replica, int index) {
    return replicas_.at(replica).batches.at(static_cast<std::size_t>(index)).micro_batch();
  };
}

std::uint64_t BatchFeed::epoch(std::int64_t step) const {
  return replicas_.begin()->second.loader->epoch(static_cast<std::uint64_t>(step));
}

std::map<int, BatchTensors*> BatchFeed::evaluation_tensors() {
  std::map<int, BatchTensors*> tensors;
  for (auto& [index, replica] : replicas_) tensors[index] = &replica.batches.front();
  return tensors;
}

}  // namespace chaski
