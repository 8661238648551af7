#include "parallel/reduction/segment_exchange.h"

#include <algorithm>

#include "kernels/device/rounding.h"
#include "kernels/elementwise/elementwise.h"
#include "parallel/membership/message_tags.h"

namespace chaski {
namespace {

// Elements of a segment: large enough to hide a message's cost, small enough that it is still in
// the cache when it is added, and that the buffers of many peers stay small.
std::int64_t segment_size(std::size_t group_size) {
  constexpr std::int64_t kShared = std::int64_t{1} << 19;
  return std::clamp<std::int64_t>(kShared / static_cast<std::int64_t>(group_size), 1 << 14,
                                  1 << 18);
}

}  // namespace

SegmentExchange::SegmentExchange(Communicator& communicator, const std::vector<int>& ranks,
                                 int stage, Device& device, const std::vector<Tensor>& tensors)
    : communicator_(communicator),
      device_(device),
      stage_(stage),
      position_(static_cast<std::size_t>(position_in(ranks, communicator.rank()))),
      segment_elements_(segment_size(ranks.size())) {
  peers_.resize(ranks.size() - 1);
  buffer_ = device.allocate(DType::f32,
                            {static_cast<std::int64_t>(peers_.size()), kWindow * segment_elements_},
                            MemoryCategory::communication);
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    peers_[i].position = i < position_ ? i : i + 1;
    peers_[i].rank = ranks[peers_[i].position];
    peers_[i].incoming = buffer_.tensor().rows(static_cast<std::int64_t>(i), 1);
  }
  cut_into_segments(tensors);
}

void SegmentExchange::cut_into_segments(const std::vector<Tensor>& tensors) {
  const std::int64_t group = std::ssize(peers_) + 1;
  constexpr std::int64_t kAlignment = Device::kAlignment / static_cast<std::int64_t>(sizeof(float));
  segments_.resize(static_cast<std::size_t>(group));
  tensor_begin_.resize(static_cast<std::size_t>(group));
  for (const Tensor& tensor : tensors) {
    const std::int64_t count = tensor.num_elements();
    const std::int64_t piece = round_up(divide_up(count, group), kAlignment);
    for (std::int64_t owner = 0; owner < group; ++owner) {
      auto& segments = segments_[static_cast<std::size_t>(owner)];
      tensor_begin_[static_cast<std::size_t>(owner)].push_back(std::ssize(segments));
      const std::int64_t end = std::min(count, (owner + 1) * piece);
      for (std::int64_t at = std::min(count, owner * piece); at < end; at += segment_elements_) {
        segments.push_back({tensor.f32() + at, std::min(segment_elements_, end - at)});
        const bool mine = owner == static_cast<std::int64_t>(position_);
        bytes_per_round_ += segments.back().bytes() * (mine ? group - 1 : 1);
      }
    }
  }
  for (std::size_t owner = 0; owner < segments_.size(); ++owner) {
    tensor_begin_[owner].push_back(std::ssize(segments_[owner]));
  }
}

void SegmentExchange::reset() {
  num_started_ = 0;
  num_summed_ = 0;
  for (Peer& peer : peers_) {
    for (Channel* channel : {&peer.parts_out, &peer.parts_in, &peer.sums_out, &peer.sums_in}) {
      channel->started = channel->done = 0;
    }
  }
}

void SegmentExchange::start(std::int64_t count) {
  num_started_ = std::max(num_started_, count);
}

std::int64_t SegmentExchange::started_segments(std::size_t position) const {
  return tensor_begin_[position][static_cast<std::size_t>(num_started_)];
}

void SegmentExchange::poll(Channel& channel) {
  while (channel.done < channel.started && communicator_.test(channel.request(channel.done))) {
    ++channel.done;
  }
}

Tensor SegmentExchange::incoming(Peer& peer, std::int64_t i, std::int64_t count) const {
  float* data = peer.incoming.f32() + (i % kWindow) * segment_elements_;
  return Tensor(device_, DType::f32, {count}, data);
}

void SegmentExchange::move_parts(Peer& peer) {
  // The peer's version of my piece: a buffer is free once its segment was summed.
  const auto& mine = segments_[position_];
  while (peer.parts_in.started < std::min(started_segments(position_), num_summed_ + kWindow)) {
    const std::int64_t i = peer.parts_in.started++;
    const Tensor target = incoming(peer, i, mine[static_cast<std::size_t>(i)].count);
    peer.parts_in.request(i) = communicator_.irecv(target, peer.rank, reduce_scatter_tag(stage_));
  }
  poll(peer.parts_in);
  // My version of its piece, and, once that has left, the sum into the same place.
  const auto& theirs = segments_[peer.position];
  poll(peer.parts_out);
  while (!peer.parts_out.full() && peer.parts_out.started < started_segments(peer.position)) {
    const std::int64_t i = peer.parts_out.started++;
    const Segment& segment = theirs[static_cast<std::size_t>(i)];
    peer.parts_out.request(i) =
        communicator_.isend(segment.data, segment.bytes(), peer.rank, reduce_scatter_tag(stage_));
  }
  poll(peer.sums_in);
  while (!peer.sums_in.full() && peer.sums_in.started < peer.parts_out.done) {
    const std::int64_t i = peer.sums_in.started++;
    const Segment& segment = theirs[static_cast<std::size_t>(i)];
    peer.sums_in.request(i) =
        communicator_.irecv(segment.data, segment.bytes(), peer.rank, all_gather_tag(stage_));
  }
  poll(peer.sums_out);
}

void SegmentExchange::sum_segments() {
  while (num_summed_ < started_segments(position_)) {
    for (const Peer& peer : peers_) {
      if (peer.parts_in.done <= num_summed_ || peer.sums_out.full()) return;
    }
    const Segment& segment = segments_[position_][static_cast<std::size_t>(num_summed_)];
    const Tensor own(device_, DType::f32, {segment.count}, segment.data);
    // Ascending order of ranks: first all below this process, then it, then those above.
    Tensor below;
    for (Peer& peer : peers_) {
      const Tensor part = incoming(peer, num_summed_, segment.count);
      if (peer.position > position_) {
        if (!below.empty()) add(below, own, own);
        below = Tensor();
        add(own, part, own);
      } else if (below.empty()) {
        below = part;
      } else {
        add(below, part, below);
      }
    }
    if (!below.empty()) add(below, own, own);
    for (Peer& peer : peers_) {
      peer.sums_out.request(peer.sums_out.started++) =
          communicator_.isend(segment.data, segment.bytes(), peer.rank, all_gather_tag(stage_));
    }
    ++num_summed_;
  }
}

std::int64_t SegmentExchange::num_messages_done() const {
  std::int64_t done = 0;
  for (const Peer& peer : peers_) {
    done += peer.parts_out.done + peer.parts_in.done + peer.sums_out.done + peer.sums_in.done;
  }
  return done;
}

bool SegmentExchange::move() {
  if (num_started_ == 0) return false;
  const std::int64_t done_before = num_messages_done();
  for (Peer& peer : peers_) move_parts(peer);
  sum_segments();
  return num_messages_done() != done_before;
}

bool SegmentExchange::complete() const {
  return std::all_of(peers_.begin(), peers_.end(), [&](const Peer& peer) {
    const std::int64_t mine = tensor_begin_[position_].back();
    const std::int64_t theirs = tensor_begin_[peer.position].back();
    return peer.parts_out.done == theirs && peer.sums_in.done == theirs &&
           peer.parts_in.done == mine && peer.sums_out.done == mine;
  });
}

void SegmentExchange::finish() {
  communicator_.wait_until([this] {
    const bool moved = move();
    if (complete()) return Progress::done;
    return moved ? Progress::some : Progress::none;
  });
  reset();
}

void SegmentExchange::abort() noexcept {
  for (Peer& peer : peers_) {
    for (Channel* channel : {&peer.parts_out, &peer.parts_in, &peer.sums_out, &peer.sums_in}) {
      for (Request& request : channel->requests) request.give_up();
    }
  }
}

}  // namespace chaski
