#include "app/training/channel_statistics.h"

#include <algorithm>
#include <fmt/format.h>
#include <numeric>

namespace chaski {

ChannelStatistics::ChannelStatistics(const LlamaConfig& model, std::int64_t first_step,
                                     std::int64_t dead_after)
    : num_layers_(model.num_layers),
      channels_(model.intermediate_size),
      first_step_(first_step),
      dead_after_(dead_after),
      sums_(static_cast<std::size_t>(num_layers_ * (channels_ + 1))),
      last_selected_(static_cast<std::size_t>(num_layers_ * channels_), first_step) {}

void ChannelStatistics::add(const StageRange& range, const std::vector<ChannelUse>& layers,
                            std::int64_t step) {
  auto sum = sums_.begin() + static_cast<std::ptrdiff_t>(range.first_layer * (channels_ + 1));
  auto last = last_selected_.begin() + static_cast<std::ptrdiff_t>(range.first_layer * channels_);
  for (const ChannelUse& layer : layers) {
    for (const std::uint32_t count : layer.counts) {
      *sum++ += count;
      if (count > 0) *last = step;
      ++last;
    }
    *sum++ += layer.positive;
  }
}

ChannelStatistics::Figures ChannelStatistics::take(std::int64_t layer, std::int64_t step) {
  const std::int64_t* sums = sums_.data() + layer * (channels_ + 1);
  const std::int64_t* last_selected = last_selected_.data() + layer * channels_;
  double* shares = shares_.data() + layer * channels_;
  Figures figures;
  const auto selections = static_cast<double>(
      std::max<std::int64_t>(1, std::accumulate(sums, sums + channels_, std::int64_t{0})));
  figures.positive_share = static_cast<double>(sums[channels_]) / selections;
  for (std::int64_t c = 0; c < channels_; ++c) {
    const double share = static_cast<double>(sums[c]) / selections;
    figures.overlap += std::min(share, shares[c]);
    shares[c] = share;
    if (step - last_selected[c] >= dead_after_) ++figures.dead;
  }
  return figures;
}

std::string ChannelStatistics::summary_of(double positive_share,
                                          std::optional<std::int64_t> dead) const {
  std::string text = fmt::format("{:.1f} % of the kept gates are positive", 100.0 * positive_share);
  if (dead) {
    text += fmt::format("; no token selected {} of the {} channels in the last {} steps", *dead,
                        num_layers_ * channels_, dead_after_);
  }
  return text;
}

nlohmann::ordered_json ChannelStatistics::report(std::int64_t step) {
  const bool has_previous = !shares_.empty();
  shares_.resize(last_selected_.size());
  nlohmann::ordered_json positive, dead, overlap;
  double positive_sum = 0.0;
  std::int64_t dead_sum = 0;
  for (std::int64_t layer = 0; layer < num_layers_; ++layer) {
    const Figures figures = take(layer, step);
    positive.push_back(figures.positive_share);
    dead.push_back(figures.dead);
    overlap.push_back(figures.overlap);
    positive_sum += figures.positive_share;
    dead_sum += figures.dead;
  }
  std::fill(sums_.begin(), sums_.end(), 0);
  const bool knows_dead = step - first_step_ >= dead_after_;
  summary_ = summary_of(positive_sum / static_cast<double>(num_layers_),
                        knows_dead ? std::optional(dead_sum) : std::nullopt);
  nlohmann::ordered_json report{{"positive_share", positive}};
  if (knows_dead) report["dead_channels"] = dead;
  if (has_previous) report["overlap"] = overlap;
  return report;
}

}  // namespace chaski
