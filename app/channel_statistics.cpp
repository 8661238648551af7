#include "app/channel_statistics.h"

#include <algorithm>
#include <fmt/format.h>
#include <numeric>

namespace chaski {

ChannelStatistics::ChannelStatistics(const LlamaConfig& model, std::int64_t first_step,
                                     std::int64_t dead_after)
    : channels_(model.intermediate_size),
      dead_after_(dead_after),
      sums_(static_cast<std::size_t>(model.num_layers * (channels_ + 1))),
      layers_(static_cast<std::size_t>(model.num_layers)) {
  for (Layer& layer : layers_) {
    layer.last_selected.assign(static_cast<std::size_t>(channels_), first_step);
  }
}

void ChannelStatistics::add(const StageRange& range, const std::vector<ChannelUse>& layers) {
  auto sum = sums_.begin() + static_cast<std::ptrdiff_t>(range.first_layer * (channels_ + 1));
  for (const ChannelUse& layer : layers) {
    for (const std::uint32_t count : layer.counts) *sum++ += count;
    *sum++ += layer.positive;
  }
}

ChannelStatistics::Figures ChannelStatistics::take(Layer& layer, const std::int64_t* sums,
                                                   std::int64_t step) const {
  Figures figures;
  const auto selections = static_cast<double>(
      std::max<std::int64_t>(1, std::accumulate(sums, sums + channels_, std::int64_t{0})));
  figures.positive_share = static_cast<double>(sums[channels_]) / selections;
  const bool has_previous = !layer.shares.empty();
  layer.shares.resize(static_cast<std::size_t>(channels_));
  for (std::int64_t c = 0; c < channels_; ++c) {
    const double share = static_cast<double>(sums[c]) / selections;
    if (has_previous) figures.overlap += std::min(share, layer.shares[c]);
    layer.shares[c] = share;
    if (sums[c] > 0) layer.last_selected[c] = step;
    if (step - layer.last_selected[c] >= dead_after_) ++figures.dead;
  }
  return figures;
}

nlohmann::ordered_json ChannelStatistics::report(std::int64_t step) {
  const bool has_previous = !layers_.front().shares.empty();
  nlohmann::ordered_json positive, dead, overlap;
  double positive_sum = 0.0;
  std::int64_t dead_sum = 0;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const std::int64_t* sums = sums_.data() + static_cast<std::ptrdiff_t>(i) * (channels_ + 1);
    const Figures figures = take(layers_[i], sums, step);
    positive.push_back(figures.positive_share);
    dead.push_back(figures.dead);
    overlap.push_back(figures.overlap);
    positive_sum += figures.positive_share;
    dead_sum += figures.dead;
  }
  std::fill(sums_.begin(), sums_.end(), 0);
  const auto num_layers = static_cast<std::int64_t>(layers_.size());
  summary_ = fmt::format(
      "{:.1f} % of the kept gates are positive; {} of {} channels were selected by no token in "
      "{} steps or more",
      100.0 * positive_sum / static_cast<double>(num_layers), dead_sum, num_layers * channels_,
      dead_after_);
  nlohmann::ordered_json report{{"positive_share", positive}, {"dead_channels", dead}};
  if (has_previous) report["overlap"] = overlap;
  return report;
}

}  // namespace chaski
