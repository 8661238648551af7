#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
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
  // A channel is dead once `dead_after` steps have passed in which no token selected it, as far as
  // reports() tell: it is reckoned from the last one in which it was selected.
  ChannelStatistics(const LlamaConfig& model, std::int64_t first_step, std::int64_t dead_after);

  // Of one step of this process.
  void add(const StageRange& range, const std::vector<ChannelUse>& layers);

  // What was added since the last report; all processes must sum it up before each one.
  std::span<std::int64_t> sums() { return sums_; }
  // Of the sums after `step` updates; begins anew. By layer: `positive_share` of the kept gates;
  // `dead_channels`; `overlap` with the report before, the sum over channels of the smaller of
  // their two shares of all selections (1: used alike; absent in the first report).
  nlohmann::ordered_json report(std::int64_t step);

  // Of the last report, all layers together, in a sentence; empty before there is one.
  const std::string& summary() const { return summary_; }

 private:
  struct Layer {
    std::vector<std::int64_t> last_selected;  // [channels], the step of a report
    std::vector<double> shares;               // [channels], of the last report; empty: none
  };
  // Of the sums of one layer: [channels] counts and the positive gates.
  struct Figures {
    double positive_share = 0.0;
    double overlap = 0.0;
    std::int64_t dead = 0;
  };
  Figures take(Layer& layer, const std::int64_t* sums, std::int64_t step) const;

  std::int64_t channels_;
  std::int64_t dead_after_;
  std::vector<std::int64_t> sums_;  // [layers, channels + 1] since the last report
  std::vector<Layer> layers_;
  std::string summary_;
};

}  // namespace chaski
