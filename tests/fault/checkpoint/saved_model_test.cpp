#include "fault/checkpoint/saved_model.h"

#include <functional>
#include <gtest/gtest.h>
#include <stdexcept>

namespace chaski {
namespace {

using Change = std::function<void(LlamaConfig&)>;

LlamaConfig small_model() {
  LlamaConfig config;
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.num_layers = 2;
  config.num_heads = 4;
  config.vocab_size = 100;
  config.resolve();
  return config;
}

// Lines of the warning, or the error.
std::string verdict(const Change& change, Beginning beginning) {
  LlamaConfig wanted = small_model();
  change(wanted);
  try {
    std::string text;
    for (const std::string& line : check_saved_model("/c", small_model(), wanted, beginning))
      text += line + "\n";
    return text;
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
}

TEST(SavedModel, TheSameOneIsTakenInSilence) {
  for (const Beginning beginning : {Beginning::resume, Beginning::new_run})
    EXPECT_EQ(verdict([](LlamaConfig&) {}, beginning), "");
}

TEST(SavedModel, OfOtherShapeIsNeverTaken) {
  struct Case {
    const char* difference;
    Change change;
  };
  const Case cases[] = {
      {"model.hidden_size is 64 there, but the config wants 32",
       [](LlamaConfig& c) { c.hidden_size = 32; }},
      {"model.intermediate_size is 96 there, but the config wants 97",
       [](LlamaConfig& c) { c.intermediate_size = 97; }},
      {"model.num_layers is 2 there, but the config wants 3",
       [](LlamaConfig& c) { c.num_layers = 3; }},
      {"model.num_kv_heads is 4 there, but the config wants 2",
       [](LlamaConfig& c) { c.num_kv_heads = 2; }},
      {"model.vocab_size is 100 there, but the config wants 101",
       [](LlamaConfig& c) { c.vocab_size = 101; }},
      {"model.tie_embeddings is false there, but the config wants true",
       [](LlamaConfig& c) { c.tie_embeddings = true; }},
      // Weights of the same shape that are others all the same.
      {"model.num_heads is 4 there, but the config wants 8; model.head_dim is 16 there, but the "
       "config wants 8",
       [](LlamaConfig& c) {
         c.num_heads = 8;
         c.head_dim = 8;
       }},
  };
  for (const Case& tested : cases) {
    const std::string expected = std::string("/c is a checkpoint of another model: ") +
                                 tested.difference + "\nhint: `chaski inspect /c` shows it";
    for (const Beginning beginning : {Beginning::resume, Beginning::new_run})
      EXPECT_EQ(verdict(tested.change, beginning), expected);
  }
}

TEST(SavedModel, OfOtherNumbersIsTakenByANewRun) {
  struct Case {
    const char* key;
    const char* saved;
    const char* wanted;
    Change change;
  };
  const Case cases[] = {
      {"max_position_embeddings", "1024", "8192",
       [](LlamaConfig& c) { c.max_position_embeddings = 8192; }},
      {"rope_theta", "10000", "500000", [](LlamaConfig& c) { c.rope_theta = 500000.0; }},
      {"rms_norm_eps", "1e-06", "1e-05", [](LlamaConfig& c) { c.rms_norm_eps = 1e-5; }},
      {"initializer_range", "0.02", "0.01", [](LlamaConfig& c) { c.initializer_range = 0.01; }},
      {"ffn", "FFN 96", "FFN 32 of 96 channels (topk)",
       [](LlamaConfig& c) { c.moc = MocConfig{.keep = 32}; }},
  };
  for (const Case& tested : cases) {
    const std::string key = std::string("model.") + tested.key;
    EXPECT_EQ(
        verdict(tested.change, Beginning::new_run),
        "/c has " + key + " = " + tested.saved + "; this run goes on with " + tested.wanted + "\n");
    EXPECT_EQ(verdict(tested.change, Beginning::resume),
              "/c is a checkpoint of another model: " + key + " is " + tested.saved +
                  " there, but the config wants " + tested.wanted +
                  "\nhint: set [model] as there, or begin a new run with --init-from /c");
  }
  const std::string both = verdict(
      [](LlamaConfig& c) {
        c.rope_theta = 1.0;
        c.num_layers = 1;
      },
      Beginning::new_run);
  EXPECT_EQ(both.find("rope_theta"), std::string::npos) << "what stands in the way is told";
}

}  // namespace
}  // namespace chaski
