#include "model/huggingface.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <map>
#include <nlohmann/json.hpp>

#include "model/stage.h"
#include "tests/fault/checkpoint/mutation.h"

namespace chaski {
namespace {

// What transformers writes for LlamaConfig(...), shortened to what matters here.
nlohmann::json version_4() {
  return nlohmann::json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "head_dim": 16, "hidden_act": "silu",
    "hidden_size": 64, "initializer_range": 0.015, "intermediate_size": 172,
    "max_position_embeddings": 512, "mlp_bias": false, "model_type": "llama",
    "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": null, "rope_theta": 500000.0,
    "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
    "use_cache": true, "vocab_size": 1000})");
}

nlohmann::json version_5() {
  nlohmann::json json = version_4();
  for (const char* key : {"rope_theta", "rope_scaling", "torch_dtype"}) json.erase(key);
  json["dtype"] = "bfloat16";
  json["rope_parameters"] = {{"rope_theta", 500000.0}, {"rope_type", "default"}};
  return json;
}

std::string error_of(const nlohmann::json& json) {
  try {
    parse_huggingface_config(json.dump(), "config.json");
    return "no error";
  } catch (const std::exception& error) {
    return error.what();
  }
}

TEST(HuggingfaceConfig, ReadsBothVersions) {
  for (const nlohmann::json& json : {version_4(), version_5()}) {
    const LlamaConfig config = parse_huggingface_config(json.dump(), "config.json");
    EXPECT_EQ(config.hidden_size, 64);
    EXPECT_EQ(config.intermediate_size, 172);
    EXPECT_EQ(config.num_layers, 3);
    EXPECT_EQ(config.num_heads, 4);
    EXPECT_EQ(config.num_kv_heads, 2);
    EXPECT_EQ(config.head_dim, 16);
    EXPECT_EQ(config.vocab_size, 1000);
    EXPECT_EQ(config.max_position_embeddings, 512);
    EXPECT_EQ(config.rope_theta, 500000.0);
    EXPECT_EQ(config.rms_norm_eps, 1e-5);
    EXPECT_TRUE(config.tie_embeddings);
    EXPECT_EQ(config.initializer_range, 0.015);
  }
}

TEST(HuggingfaceConfig, OldFilesLeaveKeysOut) {
  nlohmann::json json = version_4();
  for (const char* key : {"num_key_value_heads", "head_dim", "rope_theta", "rope_scaling",
                          "tie_word_embeddings", "rms_norm_eps"})
    json.erase(key);
  const LlamaConfig config = parse_huggingface_config(json.dump(), "config.json");
  EXPECT_EQ(config.num_kv_heads, 4);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.rope_theta, 10000.0);
  EXPECT_FALSE(config.tie_embeddings);
}

TEST(HuggingfaceConfig, WritesWhatItReadsAndWhatBothVersionsRead) {
  LlamaConfig config = parse_huggingface_config(version_4().dump(), "config.json");
  config.rope_theta = 12345.678901234567;
  config.rms_norm_eps = 1.1e-7;
  SpecialTokens special;
  special.bos = 1;
  special.eos = 2;
  const std::string text = huggingface_config(config, special, "bfloat16");
  EXPECT_TRUE(parse_huggingface_config(text, "config.json") == config);
  const auto json = nlohmann::json::parse(text);
  EXPECT_EQ(json["rope_theta"].get<double>(), config.rope_theta);
  EXPECT_EQ(json["rope_parameters"]["rope_theta"].get<double>(), config.rope_theta);
  EXPECT_EQ(json["torch_dtype"], "bfloat16");
  EXPECT_EQ(json["dtype"], "bfloat16");
  EXPECT_EQ(json["bos_token_id"], 1);
  EXPECT_TRUE(json["pad_token_id"].is_null());
}

TEST(HuggingfaceConfig, RefusesOtherModels) {
  const auto with = [](const char* key, const nlohmann::json& value) {
    nlohmann::json json = version_4();
    json[key] = value;
    return error_of(json);
  };
  EXPECT_EQ(with("attention_bias", true), "config.json: attention_bias = true is not supported");
  EXPECT_NE(with("model_type", "mistral").find("model_type"), std::string::npos);
  EXPECT_NE(with("hidden_act", "gelu").find("hidden_act"), std::string::npos);
  EXPECT_NE(with("rope_scaling", {{"type", "linear"}, {"factor", 2.0}}).find("rope_scaling"),
            std::string::npos);
  EXPECT_NE(with("rope_parameters", {{"rope_type", "llama3"}}).find("rope_parameters"),
            std::string::npos);
  EXPECT_NE(with("hidden_size", "64").find("is not a whole number"), std::string::npos);
  EXPECT_NE(with("hidden_size", 1e30).find("is not a whole number"), std::string::npos);
  EXPECT_NE(with("hidden_size", 18446744073709551615ULL).find("is not a whole number"),
            std::string::npos);
  EXPECT_NE(with("num_attention_heads", 0).find("num_heads"), std::string::npos);
  EXPECT_NE(error_of(nlohmann::json::array()).find("no JSON object"), std::string::npos);
  nlohmann::json missing = version_4();
  missing.erase("vocab_size");
  EXPECT_EQ(error_of(missing), "config.json: has no vocab_size");
}

TEST(HuggingfaceConfig, MutatedFiles) {
  const std::string original = version_5().dump();
  Mutator mutator(6);
  for (int i = 0; i < 5000; ++i) {
    const auto text = mutator.mutate({original.begin(), original.end()});
    try {
      parse_huggingface_config({text.begin(), text.end()}, "config.json");
    } catch (const std::runtime_error&) {
    } catch (const std::invalid_argument&) {
    }
  }
}

// Names, shapes and kinds are those of the model that Chaski builds.
TEST(HuggingfaceWeights, AreTheStagesParameters) {
  for (const bool tied : {false, true}) {
    LlamaConfig config = parse_huggingface_config(version_4().dump(), "config.json");
    config.tie_embeddings = tied;
    const auto device = Device::create_cpu(1);
    StageOptions options;
    options.training = false;
    Stage stage(*device, config, stage_range(config, 0, 1), options);
    const auto describe = [](const auto& weight) {
      return fmt::format("{} {} {}", weight.shape.to_string(), name_of(weight.kind), weight.layer);
    };
    std::map<std::string, std::string> expected;
    for (const Parameter& parameter : stage.parameters())
      expected[parameter.name] = describe(parameter);
    std::map<std::string, std::string> found;
    std::int64_t elements = 0;
    for (const WeightShape& weight : huggingface_weights(config)) {
      found[weight.name] = describe(weight);
      elements += weight.shape.num_elements();
    }
    EXPECT_EQ(found, expected);
    EXPECT_EQ(elements, config.num_parameters());
  }
}

}  // namespace
}  // namespace chaski
