#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/llama_config.h"
#include "model/stage.h"

namespace chaski {

// What channels the tokens of a run use, in a model with MoC: whether some die, whether negative
// gates have to be kept, how fast the choice changes. Every process counts its own stage and rows.
class ChannelStatistics {
 public:
  // A channel is dead once no token has selected it in `dead_after` steps, all of them counted
  // here.
  ChannelStatistics(const LlamaConfig& model, std::int64_t first_step, std::int64_t dead_after);

  // Of the step that made `step` updates of them, as this process has seen it. Every step is added.
  void add(const StageRange& range, const std::vector<ChannelUse>& layers, std::int64_t step);

  // What was added since the last report, and the last step in which each channel was selected:
  // before each report all processes must sum up the former and take the largest of the latter.
  std::span<std::int64_t> sums() { return sums_; }
  std::span<std::int64_t> last_selected() { return last_selected_; }
  // Of the sums after `step` updates; begins anew. By layer: `positive_share` of the kept gates;
  // `dead_channels` (absent before `dead_after` steps were added); `overlap` with the report
  // before, the sum over channels of the smaller of their two shares of all selections (1: used
  // alike; absent in the first report).
  nlohmann::ordered_json report(std::int64_t step);

  // Of the last report, all layers together, in a sentence; empty before there is one.
  const std::string& summary() const { return summary_; }

 private:
  // Of the sums of one layer: [channels] counts and the positive gates.
  struct Figures {
    double positive_share = 0.0;
    double overlap = 0.0;
    std::int64_t dead = 0;
  };
  Figures take(std::int64_t layer, std::int64_t step);
  std::string summary_of(double positive_share, std::optional<std::int64_t> dead) const;

  std::int64_t num_layers_;
  std::int64_t channels_;
  std::int64_t first_step_;
  std::int64_t dead_after_;
  std::vector<std::int64_t> sums_;           // [layers, channels + 1] since the last report
  std::vector<std::int64_t> last_selected_;  // [layers, channels]
  std::vector<double> shares_;               // [layers, channels] of the last report; empty: none
  std::string summary_;
};

}  // namespace chaski
