#include "fault/checkpoint/saved_model.h"

#include <fmt/format.h>
#include <stdexcept>

namespace chaski {
namespace {

struct Difference {
  std::string key;
  std::string saved;
  std::string wanted;
};

// Differences between two models, in keys that shape the weights and in others.
class Comparison {
 public:
  Comparison(const LlamaConfig& saved, const LlamaConfig& wanted) {
    const auto compare = [&](std::vector<Difference>& found, const char* key, auto member) {
      if (saved.*member == wanted.*member) return;
      found.push_back({key, fmt::format("{}", saved.*member), fmt::format("{}", wanted.*member)});
    };
    compare(of_weights, "hidden_size", &LlamaConfig::hidden_size);
    compare(of_weights, "intermediate_size", &LlamaConfig::intermediate_size);
    compare(of_weights, "num_layers", &LlamaConfig::num_layers);
    compare(of_weights, "num_heads", &LlamaConfig::num_heads);
    compare(of_weights, "num_kv_heads", &LlamaConfig::num_kv_heads);
    compare(of_weights, "head_dim", &LlamaConfig::head_dim);
    compare(of_weights, "vocab_size", &LlamaConfig::vocab_size);
    compare(of_weights, "tie_embeddings", &LlamaConfig::tie_embeddings);
    compare(others, "max_position_embeddings", &LlamaConfig::max_position_embeddings);
    compare(others, "rope_theta", &LlamaConfig::rope_theta);
    compare(others, "rms_norm_eps", &LlamaConfig::rms_norm_eps);
    compare(others, "initializer_range", &LlamaConfig::initializer_range);
    if (!(saved.moc == wanted.moc)) {
      others.push_back({"ffn", saved.describe_ffn(), wanted.describe_ffn()});
    }
    // A key that is new to LlamaConfig and missing above must not pass.
    if (of_weights.empty() && others.empty() && !(saved == wanted))
      throw std::logic_error("check_saved_model does not compare all keys of a model");
  }

  std::vector<Difference> of_weights;
  std::vector<Difference> others;
};

[[noreturn]] void refuse(const std::string& checkpoint, const std::vector<Difference>& differences,
                         const std::string& hint) {
  std::string text;
  for (const Difference& difference : differences) {
    text += fmt::format("{}model.{} is {} there, but the config wants {}", text.empty() ? "" : "; ",
                        difference.key, difference.saved, difference.wanted);
  }
  throw std::invalid_argument(
      fmt::format("{} is a checkpoint of another model: {}\nhint: {}", checkpoint, text, hint));
}

}  // namespace

std::vector<std::string> check_saved_model(const std::string& checkpoint, const LlamaConfig& saved,
                                           const LlamaConfig& wanted, Beginning beginning) {
  const Comparison comparison(saved, wanted);
  if (!comparison.of_weights.empty()) {
    refuse(checkpoint, comparison.of_weights,
           fmt::format("`chaski inspect {}` shows it", checkpoint));
  }
  if (!comparison.others.empty() && beginning == Beginning::resume) {
    refuse(checkpoint, comparison.others,
           fmt::format("set [model] as there, or begin a new run with --init-from {}", checkpoint));
  }
  std::vector<std::string> lines;
  for (const Difference& difference : comparison.others) {
    lines.push_back(fmt::format("{} has model.{} = {}; this run goes on with {}", checkpoint,
                                difference.key, difference.saved, difference.wanted));
  }
  return lines;
}

}  // namespace chaski
