#include "app/config/stored_config.h"

#include "tests/app/config/config_text.h"

namespace chaski {
namespace {

const char* const kCheckpoint = "run/checkpoints/step-00000100";

// As a version without model.recompute and [model.moc] stored it, and one that had more.
std::string of_another_version(const TrainConfig& config) {
  std::string text = to_toml(config, false);
  const auto replace = [&](const std::string& part, const std::string& by) {
    const std::size_t position = text.find(part);
    ASSERT_NE(position, std::string::npos) << part << " in\n" << text;
    text.replace(position, part.size(), by);
  };
  replace("recompute = \"elementwise\"\n", "");
  replace("[device]\n", "[device]\nactivations = \"recompute\"\n");
  replace("[optimizer]\n", "[optimizer]\namsgrad = true\n");
  return "version = 1\n" + text + "\n[profiler]\nevery = 3\n[model.router]\nexperts = 4\n";
}

TEST(StoredConfig, WhatThisVersionDoesNotHaveIsPassedOverAndNamed) {
  const TrainConfig config = parse(kMinimalConfig, {"optimizer.lr=0.002", "run.seed=9"});
  const std::string text = of_another_version(config);
  expect_contains(error_of(text), "unknown key");  // of a config that a user writes
  const StoredConfig stored = parse_stored_config(text, kCheckpoint);
  EXPECT_EQ(stored.config, config);
  EXPECT_EQ(stored.unknown, (std::vector<std::string>{"device.activations", "model.router",
                                                      "optimizer.amsgrad", "profiler", "version"}));
  EXPECT_TRUE(parse_stored_config(to_toml(config), kCheckpoint).unknown.empty());
}

TEST(StoredConfig, ChangesOfCourseAreNamedWhateverElseIsStored) {
  const TrainConfig config = parse(kMinimalConfig);
  const auto changes = [&](const std::string& saved, const std::vector<std::string>& overrides) {
    return changes_of_course(saved, kCheckpoint, parse(kMinimalConfig, overrides));
  };
  const std::string saved = to_toml(config, false);
  EXPECT_EQ(changes(saved, {}), "");
  EXPECT_EQ(changes(saved, {"model.recompute=block", "checkpoint.every=7", "log.every=3"}), "");
  EXPECT_EQ(changes(saved, {"run.seed=2", "data.sequence_length=128", "optimizer.lr=1e-4",
                            "schedule.kind=constant", "parallel.global_batch=64"}),
            "run.seed, [data], [optimizer], [schedule], parallel.global_batch");
  const std::string earlier = "[device]\nactivations = \"exact\"\n";
  EXPECT_EQ(changes(kMinimalConfig + earlier, {}),
            "device.activations, which this version does not have");
  EXPECT_EQ(changes(kMinimalConfig + earlier, {"run.seed=2"}),
            "run.seed, device.activations, which this version does not have");
  for (const char* refused :
       {"[device]\nprecision = \"fp8\"\n", "[optimizer]\nlr = -1.0\n", "[", "="})
    EXPECT_EQ(changes(kMinimalConfig + refused, {}), "values that this version does not allow");
}

}  // namespace
}  // namespace chaski
