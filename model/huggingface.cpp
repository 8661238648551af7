#include "model/huggingface.h"

#include <fmt/format.h>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>

#include "model/bounded_json.h"

namespace chaski {
namespace {

using Json = nlohmann::ordered_json;

// A config.json being read; keys that are absent or null take their default.
class ConfigReader {
 public:
  ConfigReader(Json json, std::string source) : json_(std::move(json)), source_(std::move(source)) {
    if (!json_.is_object()) throw std::runtime_error(source_ + ": is no JSON object");
  }

  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }

  std::int64_t integer(const char* key, std::int64_t fallback) const {
    if (!has(key)) return fallback;
    const Json& value = json_[key];
    constexpr auto kMax = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (!value.is_number_integer() ||
        (value.is_number_unsigned() && value.get<std::uint64_t>() > kMax))
      fail(key, "a whole number");
    return value.get<std::int64_t>();
  }
  std::int64_t required_integer(const char* key) const {
    if (!has(key)) throw std::runtime_error(fmt::format("{}: has no {}", source_, key));
    return integer(key, 0);
  }
  double number(const char* key, double fallback) const {
    if (!has(key)) return fallback;
    if (!json_[key].is_number()) fail(key, "a number");
    return json_[key].get<double>();
  }
  bool boolean(const char* key, bool fallback) const {
    if (!has(key)) return fallback;
    if (!json_[key].is_boolean()) fail(key, "true or false");
    return json_[key].get<bool>();
  }
  std::string text(const char* key, const std::string& fallback) const {
    if (!has(key)) return fallback;
    if (!json_[key].is_string()) fail(key, "a string");
    return json_[key].get<std::string>();
  }
  ConfigReader table(const char* key) const {
    return {has(key) ? json_[key] : Json::object(), fmt::format("{}: {}", source_, key)};
  }

  void require(bool supported, const char* key) const {
    if (!supported)
      throw std::invalid_argument(
          fmt::format("{}: {} = {} is not supported", source_, key,
                      json_[key].dump(-1, ' ', true, Json::error_handler_t::replace)));
  }
  void require_between(const char* key, std::int64_t value, std::int64_t least,
                       std::int64_t most) const {
    if (value >= least && value <= most) return;
    throw std::invalid_argument(
        fmt::format("{}: {} is {} but must be from {} to {}", source_, key, value, least, most));
  }

 private:
  [[noreturn]] void fail(const char* key, const char* expected) const {
    throw std::runtime_error(fmt::format("{}: {} is not {}", source_, key, expected));
  }

  Json json_;
  std::string source_;
};

void check_supported(const ConfigReader& reader) {
  reader.require(reader.text("model_type", "llama") == "llama", "model_type");
  reader.require(reader.text("hidden_act", "silu") == "silu", "hidden_act");
  reader.require(!reader.boolean("attention_bias", false), "attention_bias");
  reader.require(!reader.boolean("mlp_bias", false), "mlp_bias");
  reader.require(reader.number("partial_rotary_factor", 1.0) == 1.0, "partial_rotary_factor");
}

// transformers 5 has `rope_parameters` with everything, version 4 `rope_theta` and `rope_scaling`.
double read_rope_theta(const ConfigReader& reader) {
  double theta = reader.number("rope_theta", 10000.0);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const ConfigReader rope = reader.table(key);
    const std::string type = rope.text("rope_type", rope.text("type", "default"));
    reader.require(type == "default", key);
    theta = rope.number("rope_theta", theta);
  }
  return theta;
}

constexpr const char* kMocKey = "mixture_of_channels";
// The one of two values that has the name which is given, or the first.
template <typename Enum>
Enum read_choice(const ConfigReader& reader, const char* key, Enum first, Enum second) {
  const std::string name = reader.text(key, name_of(first));
  reader.require(name == name_of(first) || name == name_of(second), key);
  return name == name_of(first) ? first : second;
}

// Chaski's own table, which other programs pass over.
std::optional<MocConfig> read_moc(const ConfigReader& reader, std::int64_t intermediate_size) {
  if (!reader.has(kMocKey)) return std::nullopt;
  const ConfigReader table = reader.table(kMocKey);
  MocConfig moc;
  moc.keep = table.required_integer("keep");
  table.require_between("keep", moc.keep, 1, intermediate_size);
  moc.pattern = read_choice(table, "pattern", MocPattern::topk, MocPattern::two_of_eight);
  moc.score = read_choice(table, "selection", MocScore::gate, MocScore::silu_magnitude);
  return moc;
}

void put_token(Json& json, const char* key, std::int64_t id) {
  json[key] = id >= 0 ? Json(id) : Json(nullptr);
}

}  // namespace

LlamaConfig parse_huggingface_config(const std::string& text, const std::string& source) {
  const ConfigReader reader(parse_bounded_json(text, source), source);
  check_supported(reader);
  LlamaConfig config;
  config.hidden_size = reader.required_integer("hidden_size");
  config.intermediate_size = reader.required_integer("intermediate_size");
  config.num_layers = reader.required_integer("num_hidden_layers");
  config.num_heads = reader.required_integer("num_attention_heads");
  config.num_kv_heads = reader.integer("num_key_value_heads", 0);
  config.head_dim = reader.integer("head_dim", 0);
  config.vocab_size = reader.required_integer("vocab_size");
  config.max_position_embeddings = reader.integer("max_position_embeddings", 2048);
  config.rope_theta = read_rope_theta(reader);
  config.rms_norm_eps = reader.number("rms_norm_eps", 1e-6);
  config.tie_embeddings = reader.boolean("tie_word_embeddings", false);
  config.initializer_range = reader.number("initializer_range", 0.02);
  config.moc = read_moc(reader, config.intermediate_size);
  try {
    config.resolve();
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(fmt::format("{}: {}", source, error.what()));
  }
  return config;
}

std::string huggingface_config(const LlamaConfig& config, const SpecialTokens& special,
                               const std::string& dtype) {
  Json json;
  json["architectures"] = {"LlamaForCausalLM"};
  json["model_type"] = "llama";
  json["attention_bias"] = false;
  json["attention_dropout"] = 0.0;
  put_token(json, "bos_token_id", special.bos);
  put_token(json, "eos_token_id", special.eos);
  put_token(json, "pad_token_id", special.pad);
  json["head_dim"] = config.head_dim;
  json["hidden_act"] = "silu";
  json["hidden_size"] = config.hidden_size;
  json["initializer_range"] = config.initializer_range;
  json["intermediate_size"] = config.intermediate_size;
  json["max_position_embeddings"] = config.max_position_embeddings;
  json["mlp_bias"] = false;
  if (config.moc) {
    json[kMocKey] = {{"keep", config.moc->keep},
                     {"pattern", name_of(config.moc->pattern)},
                     {"selection", name_of(config.moc->score)}};
  }
  json["num_attention_heads"] = config.num_heads;
  json["num_hidden_layers"] = config.num_layers;
  json["num_key_value_heads"] = config.num_kv_heads;
  json["pretraining_tp"] = 1;
  json["rms_norm_eps"] = config.rms_norm_eps;
  json["rope_parameters"] = {{"rope_theta", config.rope_theta}, {"rope_type", "default"}};
  json["rope_scaling"] = nullptr;
  json["rope_theta"] = config.rope_theta;
  json["tie_word_embeddings"] = config.tie_embeddings;
  json["torch_dtype"] = dtype;
  json["dtype"] = dtype;
  json["use_cache"] = true;
  json["vocab_size"] = config.vocab_size;
  return json.dump(2) + "\n";
}

std::string huggingface_generation_config(const SpecialTokens& special) {
  Json json;
  json["_from_model_config"] = true;
  put_token(json, "bos_token_id", special.bos);
  put_token(json, "eos_token_id", special.eos);
  put_token(json, "pad_token_id", special.pad);
  return json.dump(2) + "\n";
}

std::vector<WeightShape> huggingface_weights(const LlamaConfig& config) {
  using enum ParameterKind;
  const std::int64_t hidden = config.hidden_size;
  std::vector<WeightShape> weights;
  const auto add = [&](const std::string& name, Shape shape, ParameterKind kind,
                       std::int64_t layer) {
    weights.push_back({name + ".weight", shape, kind, layer});
  };
  add("model.embed_tokens", {config.vocab_size, hidden}, embedding, -1);
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    const auto add_to_block = [&](const char* name, Shape shape, ParameterKind kind) {
      add(fmt::format("model.layers.{}.{}", layer, name), shape, kind, layer);
    };
    add_to_block("input_layernorm", {hidden}, norm);
    add_to_block("self_attn.q_proj", {config.query_size(), hidden}, attention);
    add_to_block("self_attn.k_proj", {config.kv_size(), hidden}, attention);
    add_to_block("self_attn.v_proj", {config.kv_size(), hidden}, attention);
    add_to_block("self_attn.o_proj", {hidden, config.query_size()}, attention);
    add_to_block("post_attention_layernorm", {hidden}, norm);
    add_to_block("mlp.gate_proj", {config.intermediate_size, hidden}, ffn);
    add_to_block("mlp.up_proj", {config.intermediate_size, hidden}, ffn);
    add_to_block("mlp.down_proj", {hidden, config.intermediate_size}, ffn);
  }
  add("model.norm", {hidden}, norm, -1);
  if (!config.tie_embeddings) add("lm_head", {config.vocab_size, hidden}, head, -1);
  return weights;
}

}  // namespace chaski
