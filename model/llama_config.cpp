#include "model/llama_config.h"

#include <algorithm>
#include <fmt/core.h>
#include <fmt/ranges.h>
#include <stdexcept>

namespace chaski {
namespace {

struct Preset {
  const char* name;
  std::int64_t hidden_size, intermediate_size, num_heads, num_layers, max_position_embeddings;
};

// GaLore's published configurations (github.com/jiaweizzhao/GaLore, configs/).
constexpr Preset kPresets[] = {
    {"llama-9m", 128, 352, 4, 4, 1024},       {"llama-20m", 256, 688, 4, 4, 1024},
    {"llama-60m", 512, 1376, 8, 8, 1024},     {"llama-130m", 768, 2048, 12, 12, 1024},
    {"llama-350m", 1024, 2736, 16, 24, 1024}, {"llama-1b", 2048, 5461, 32, 24, 1024},
    {"llama-7b", 4096, 11008, 32, 32, 2048},
};

void require(bool condition, const char* key, const std::string& value, const char* allowed) {
  if (!condition) {
    throw std::invalid_argument(
        fmt::format("model.{} = {} is not allowed: {}", key, value, allowed));
  }
}

void require_positive(const char* key, std::int64_t value) {
  require(value > 0, key, std::to_string(value), "must be at least 1");
}

// Fills in and checks what is kept of the FFN's channels.
void resolve_moc(MocConfig& moc, const LlamaConfig& config) {
  const std::int64_t channels = config.intermediate_size;
  require(channels <= MocShape::kMaxChannels, "intermediate_size", std::to_string(channels),
          "must be at most 65535 with model.ffn = \"moc\"");
  if (moc.pattern == MocPattern::two_of_eight) {
    const std::int64_t kept = MocShape::kept_of_eight(channels);
    if (moc.keep == 0) moc.keep = kept;
    if (moc.keep == kept) return;
    throw std::invalid_argument(
        fmt::format("model.moc.keep = {} is not allowed: model.moc.pattern = \"2:8\" keeps {} of "
                    "model.intermediate_size = {}\nhint: leave model.moc.keep out",
                    moc.keep, kept, channels));
  }
  if (moc.keep == 0) moc.keep = std::clamp<std::int64_t>(config.hidden_size / 2, 1, channels);
  if (moc.keep >= 1 && moc.keep <= channels) return;
  throw std::invalid_argument(
      fmt::format("model.moc.keep = {} is not allowed: must lie between 1 and "
                  "model.intermediate_size = {}",
                  moc.keep, channels));
}

}  // namespace

void LlamaConfig::resolve() {
  require_positive("hidden_size", hidden_size);
  require_positive("intermediate_size", intermediate_size);
  require_positive("num_layers", num_layers);
  require_positive("num_heads", num_heads);
  require_positive("vocab_size", vocab_size);
  require_positive("max_position_embeddings", max_position_embeddings);
  if (num_kv_heads == 0) num_kv_heads = num_heads;
  require_positive("num_kv_heads", num_kv_heads);
  if (num_heads % num_kv_heads != 0) {
    throw std::invalid_argument(
        fmt::format("model.num_kv_heads = {} is not allowed: must divide model.num_heads = {}",
                    num_kv_heads, num_heads));
  }
  if (head_dim == 0) {
    if (hidden_size % num_heads != 0) {
      throw std::invalid_argument(
          fmt::format("model.num_heads = {} is not allowed: must divide model.hidden_size = {}\n"
                      "hint: or give model.head_dim, which makes the two independent",
                      num_heads, hidden_size));
    }
    head_dim = hidden_size / num_heads;
  }
  require(head_dim > 0 && head_dim <= 256 && head_dim % 2 == 0, "head_dim",
          std::to_string(head_dim), "must be even, from 2 to 256");
  require(rope_theta > 0, "rope_theta", fmt::format("{}", rope_theta), "must be above 0");
  require(rms_norm_eps > 0 && rms_norm_eps < 1, "rms_norm_eps", fmt::format("{}", rms_norm_eps),
          "must lie between 0 and 1");
  require(initializer_range > 0, "initializer_range", fmt::format("{}", initializer_range),
          "must be above 0");
  if (moc) resolve_moc(*moc, *this);
}

std::string LlamaConfig::describe_ffn() const {
  if (!moc) return fmt::format("FFN {}", intermediate_size);
  return fmt::format("FFN {} of {} channels ({}{})", moc->keep, intermediate_size,
                     name_of(moc->pattern),
                     moc->score == MocScore::gate ? "" : fmt::format(", {}", name_of(moc->score)));
}

std::int64_t LlamaConfig::num_layer_parameters() const {
  return 2 * hidden_size                         // norms
         + hidden_size * qkv_size()              // query, key, value
         + query_size() * hidden_size            // attention output
         + 3 * hidden_size * intermediate_size;  // gate, up, down
}

std::int64_t LlamaConfig::num_parameters() const {
  const std::int64_t embeddings = (tie_embeddings ? 1 : 2) * vocab_size * hidden_size;
  return embeddings + num_layers * num_layer_parameters() + hidden_size;
}

double LlamaConfig::training_flops_per_token(std::int64_t sequence_length) const {
  const auto layers = static_cast<double>(num_layers);
  const double weights =
      layers * num_layer_parameters() + static_cast<double>(vocab_size) * hidden_size;
  const double mean_keys = 0.5 * (static_cast<double>(sequence_length) + 1);
  const double dense = 6.0 * weights + 12.0 * layers * query_size() * mean_keys;
  if (!moc) return dense;
  // Of the nine products of an FFN's step the gates' forward one is whole.
  const double unused = static_cast<double>(intermediate_size - moc->keep);
  return dense - layers * 8.0 * 2.0 * static_cast<double>(hidden_size) * unused;
}

LlamaConfig llama_preset(const std::string& name) {
  for (const Preset& preset : kPresets) {
    if (name != preset.name) continue;
    LlamaConfig config;
    config.hidden_size = preset.hidden_size;
    config.intermediate_size = preset.intermediate_size;
    config.num_heads = preset.num_heads;
    config.num_layers = preset.num_layers;
    config.max_position_embeddings = preset.max_position_embeddings;
    config.vocab_size = 32000;
    config.resolve();
    return config;
  }
  throw std::invalid_argument(fmt::format("model.preset = \"{}\" is not known: must be one of {}",
                                          name, fmt::join(llama_preset_names(), ", ")));
}

std::vector<std::string> llama_preset_names() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.emplace_back(preset.name);
  return names;
}

}  // namespace chaski
