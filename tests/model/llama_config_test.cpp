#include "model/llama_config.h"

#include <gtest/gtest.h>

#include "tests/model/tiny_model.h"

namespace chaski {
namespace {

// The counts that the GaLore configurations give in Hugging Face's implementation.
TEST(LlamaConfigTest, PresetsHaveThePublishedNumberOfParameters) {
  EXPECT_EQ(llama_preset("llama-60m").num_parameters(), 58'073'600);
  EXPECT_EQ(llama_preset("llama-130m").num_parameters(), 134'105'856);
  EXPECT_EQ(llama_preset("llama-350m").num_parameters(), 367'969'280);
  EXPECT_EQ(llama_preset("llama-1b").num_parameters(), 1'339'082'752);
  EXPECT_EQ(llama_preset("llama-7b").num_parameters(), 6'738'415'616);
}

TEST(LlamaConfigTest, CountsWhatAStageAllocates) {
  for (const bool tied : {false, true}) {
    const auto device = Device::create_cpu(1);
    const LlamaConfig config = testing::tiny_config(tied);
    const Stage stage(*device, config, stage_range(config, 0, 1), testing::tiny_options(1, 4));
    EXPECT_EQ(stage.parameters().num_elements(), config.num_parameters());
  }
}

TEST(LlamaConfigTest, FlopsOfATokenByHand) {
  const LlamaConfig config = llama_preset("llama-60m");
  // Per block: 4·512² + 3·512·1376 and two norms of 512; head 32000·512; keys on average 128.5.
  const double weights = 8.0 * (4 * 512 * 512 + 3 * 512 * 1376 + 2 * 512) + 32000.0 * 512;
  EXPECT_DOUBLE_EQ(config.training_flops_per_token(256), 6 * weights + 12 * 8 * 512 * 128.5);
}

TEST(LlamaConfigTest, FlopsOfATokenWithMocByHand) {
  LlamaConfig config = llama_preset("llama-60m");
  config.moc = MocConfig{};
  config.moc->keep = 100;
  // Of a block: attention and two norms as before; one whole product of 512 x 1376, eight of 512 x
  // 100.
  const double block = 6.0 * (4 * 512 * 512 + 2 * 512) + 2.0 * 512 * (1376 + 8 * 100);
  EXPECT_DOUBLE_EQ(config.training_flops_per_token(256),
                   8 * block + 6 * 32000.0 * 512 + 12 * 8 * 512 * 128.5);
}

void expect_refused(const LlamaConfig& config, const std::string& key) {
  LlamaConfig copy = config;
  try {
    copy.resolve();
    FAIL() << "accepted a wrong " << key;
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find(key), std::string::npos) << error.what();
  }
}

TEST(LlamaConfigTest, ImpossibleShapesAreRefusedByKey) {
  const LlamaConfig good = testing::tiny_config();
  LlamaConfig config = good;
  config.num_kv_heads = 3;
  expect_refused(config, "model.num_kv_heads = 3");
  config = good;
  config.head_dim = 0;
  config.num_heads = 5;
  config.num_kv_heads = 5;
  expect_refused(config, "model.num_heads = 5");
  config = good;
  config.head_dim = 7;
  expect_refused(config, "model.head_dim = 7");
  config = good;
  config.vocab_size = 0;
  expect_refused(config, "model.vocab_size = 0");
  EXPECT_THROW(llama_preset("llama-61m"), std::invalid_argument);
}

}  // namespace
}  // namespace chaski
