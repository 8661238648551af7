#include "app/config/config.h"

#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "app/config/schema.h"
#include "tests/app/config/config_text.h"

namespace chaski {
namespace {

TEST(Config, MinimalGetsDefaults) {
  const TrainConfig config = parse(kMinimalConfig);
  EXPECT_EQ(config.run.output, "runs/run");
  EXPECT_EQ(config.model.llama.hidden_size, 128);
  EXPECT_EQ(config.model.llama.vocab_size, 32000);
  EXPECT_EQ(config.data.train, std::vector<std::string>{"corpus.h5"});
  EXPECT_EQ(config.schedule.warmup_steps, 100);
  EXPECT_EQ(config.schedule.decay_steps, 0);
  EXPECT_EQ(config.checkpoint_directory(), "runs/run/checkpoints");
  EXPECT_EQ(config.metrics_path(), "runs/run/metrics.jsonl");
}

TEST(Config, APlanNeedsNoNumberOfSteps) {
  const std::string text = "[model]\npreset = \"llama-9m\"\n[data]\ntrain = \"corpus.h5\"\n";
  EXPECT_EQ(parse_config(text, "run.toml", {}, StepsAre::optional).schedule.steps, 0);
  // What depends on their number is checked when there is one.
  const std::string rest = text + "[schedule]\nwarmup_steps = 20\n";
  EXPECT_EQ(parse_config(rest, "run.toml", {}, StepsAre::optional).schedule.warmup_steps, 20);
  EXPECT_THROW(parse_config(rest + "steps = 10\n", "run.toml", {}, StepsAre::optional),
               std::invalid_argument);
  EXPECT_THROW(parse_config(text, "run.toml"), std::invalid_argument);
}

TEST(Config, EveryTypeIsRead) {
  const TrainConfig config = parse(R"(
[run]
name = "tiny"
seed = 7
nonfinite = "stop"
[model]
hidden_size = 64
intermediate_size = 172
num_layers = 3
num_heads = 4
num_kv_heads = 2
vocab_size = 500
rope_theta = 500000
recompute = "block"
tie_embeddings = true
[data]
train = ["a.h5", "b*.h5"]
reset_at_documents = true
sequence_length = 32
[optimizer]
lr = 3e-4
betas = [0.8, 0.99]
weight_decay = 0
[schedule]
kind = "wsd"
steps = 50
[parallel]
micro_batch = 2
global_batch = 12
schedule = "gpipe"
)");
  EXPECT_EQ(config.run.name, "tiny");
  EXPECT_EQ(config.run.output, "runs/tiny");
  EXPECT_EQ(config.run.seed, 7);
  EXPECT_EQ(config.run.nonfinite, NonfinitePolicy::stop);
  EXPECT_EQ(config.model.llama.head_dim, 16);
  EXPECT_EQ(config.model.llama.num_kv_heads, 2);
  EXPECT_EQ(config.model.llama.rope_theta, 500000.0);
  EXPECT_TRUE(config.model.llama.tie_embeddings);
  EXPECT_EQ(config.data.train, (std::vector<std::string>{"a.h5", "b*.h5"}));
  EXPECT_TRUE(config.data.reset_at_documents);
  EXPECT_EQ(config.optimizer.lr, 3e-4);
  const auto adamw = std::get<AdamWOptions>(config.optimizer_options());
  EXPECT_EQ(adamw.beta1, 0.8);
  EXPECT_EQ(adamw.beta2, 0.99);
  EXPECT_EQ(adamw.seed, 7U);
  EXPECT_EQ(config.optimizer.weight_decay, 0.0);
  EXPECT_EQ(config.schedule.kind, DecayKind::warmup_stable_decay);
  EXPECT_EQ(config.schedule.warmup_steps, 5);
  EXPECT_EQ(config.schedule.decay_steps, 10);
  EXPECT_EQ(config.learning_rate_schedule().decay_steps, 10);
  EXPECT_EQ(config.parallel.schedule, ScheduleKind::gpipe);
  EXPECT_EQ(config.model.recompute, Recompute::block);
}

TEST(Config, ChoicesMeanWhatTheyAreCalled) {
  for (const char* name : {"constant", "linear", "cosine", "wsd"}) {
    const auto kind = parse(kMinimalConfig, {fmt::format("schedule.kind={}", name)}).schedule.kind;
    EXPECT_STREQ(name_of(kind), name);
  }
  EXPECT_EQ(parse(kMinimalConfig, {"parallel.schedule=gpipe"}).parallel.schedule,
            ScheduleKind::gpipe);
  EXPECT_EQ(parse(kMinimalConfig, {"parallel.schedule=1f1b"}).parallel.schedule,
            ScheduleKind::one_f_one_b);
  EXPECT_EQ(parse(kMinimalConfig, {"model.recompute=elementwise"}).model.recompute,
            Recompute::elementwise);
  EXPECT_EQ(parse(kMinimalConfig, {"run.nonfinite=skip"}).run.nonfinite, NonfinitePolicy::skip);
  EXPECT_EQ(parse(kMinimalConfig, {"log.console=off"}).log.console, ConsoleMode::off);
  EXPECT_EQ(parse(kMinimalConfig, {"device.backend=cpu"}).device.backend, BackendChoice::cpu);
}

TEST(Config, PresetIsChangedKeyByKey) {
  const TrainConfig config = parse(
      kMinimalConfig, {"model.vocab_size=4096", "model.num_heads=8", "model.hidden_size=256"});
  EXPECT_EQ(config.model.llama.vocab_size, 4096);
  EXPECT_EQ(config.model.llama.intermediate_size, 352);
  EXPECT_EQ(config.model.llama.num_kv_heads, 8);
  EXPECT_EQ(config.model.llama.head_dim, 32);
}

TEST(Config, PrintedConfigReadsBackTheSame) {
  const std::vector<std::vector<std::string>> variants = {
      {},
      {"run.name=a \"b\" \\ c\té", "data.train=[\"x*.h5\", \"y\\n.h5\"]", "optimizer.lr=0.1",
       "optimizer.epsilon=1.2345678901234567e-9", "log.jsonl=", "schedule.kind=wsd"},
      {"model.num_heads=2", "model.tie_embeddings=true", "parallel.data=4",
       "parallel.global_batch=64", "checkpoint.async=false", "schedule.warmup_steps=0"},
      {"model.ffn=moc", "model.moc.keep=0.2", "model.moc.selection=silu-magnitude"},
      {"model.ffn=moc", "model.moc.pattern=2:8", "model.moc.index=uint16"},
  };
  for (const auto& overrides : variants) {
    const TrainConfig config = parse(kMinimalConfig, overrides);
    for (const bool comments : {true, false}) {
      const std::string text = to_toml(config, comments);
      EXPECT_EQ(parse(text), config) << text;
      EXPECT_EQ(to_toml(parse(text), comments), text);
    }
  }
}

TEST(Config, PrintedConfigHasEveryKeyExplained) {
  const std::string text = to_toml(parse(kMinimalConfig, {"model.ffn=moc"}));
  for (const ConfigTable& table : config_tables()) {
    for (const ConfigKey& key : table.keys) {
      expect_contains(text, "\n" + key.name + " = ");
      expect_contains(text, "# " + key.documentation.substr(0, 20));
    }
  }
}

TEST(Config, ChannelsAreCountedOrShared) {
  const auto moc = [](std::vector<std::string> overrides) {
    overrides.push_back("model.ffn=moc");
    return parse(kMinimalConfig, overrides).model.llama.moc.value();
  };
  // llama-9m: hidden 128, FFN 352.
  EXPECT_EQ(moc({}), (MocConfig{64, MocPattern::topk, MocScore::gate}));
  EXPECT_EQ(moc({"model.moc.keep=100"}).keep, 100);
  EXPECT_EQ(moc({"model.moc.keep=0.25"}).keep, 88);
  EXPECT_EQ(moc({"model.moc.keep=1"}).keep, 1);
  EXPECT_EQ(moc({"model.moc.keep=1.0"}).keep, 352);
  EXPECT_EQ(moc({"model.moc.keep=0.0001"}).keep, 1);
  EXPECT_EQ(moc({"model.moc.pattern=2:8"}), (MocConfig{88, MocPattern::two_of_eight}));
  EXPECT_EQ(moc({"model.moc.pattern=2:8", "model.intermediate_size=341"}).keep, 86);
  EXPECT_EQ(
      moc({"model.moc.pattern=2:8", "model.moc.keep=0.25", "model.intermediate_size=341"}).keep,
      86);
  EXPECT_EQ(moc({"model.moc.selection=silu-magnitude"}).score, MocScore::silu_magnitude);
  EXPECT_FALSE(parse(kMinimalConfig).model.llama.moc);
  const TrainConfig in_file = parse(kMinimalConfig + "[model.moc]\nkeep = 7\n", {"model.ffn=moc"});
  EXPECT_EQ(in_file.model.llama.moc->keep, 7);
  for (const char* name : {"uint16", "bitmap"}) {
    const TrainConfig config =
        parse(kMinimalConfig, {"model.ffn=moc", fmt::format("model.moc.index={}", name)});
    EXPECT_STREQ(name_of(config.model.moc_index().value()), name);
  }
  EXPECT_FALSE(parse(kMinimalConfig, {"model.ffn=moc"}).model.moc_index());
}

TEST(Config, ReferencePageIsUpToDate) {
  std::ifstream file(std::string(CHASKI_SOURCE_DIR) + "/docs/config.md");
  const std::string page{std::istreambuf_iterator<char>(file), {}};
  EXPECT_TRUE(page == config_reference()) << "run: chaski config-reference > docs/config.md";
  for (const ConfigTable& table : config_tables()) {
    for (const ConfigKey& key : table.keys) expect_contains(page, "| `" + key.name + "` |");
  }
}

TEST(Config, KeysAreUniqueAndDocumented) {
  for (const ConfigTable& table : config_tables()) {
    EXPECT_EQ(find_config_table(table.name), &table) << table.name;
    for (const ConfigKey& key : table.keys) {
      EXPECT_EQ(find_config_key(key.dotted_name()), &key) << key.dotted_name();
      EXPECT_FALSE(key.documentation.empty());
      EXPECT_NE(key.documentation.back(), '.') << key.dotted_name();
    }
  }
}

TEST(Config, OverridesReplaceValuesInOrder) {
  const TrainConfig config =
      parse(kMinimalConfig,
            {"optimizer.lr=0.5", "optimizer.lr=0.25", "run.name=2026", "data.train=a b/c-*.h5",
             "data.validation=['v1.h5', 'v2.h5']", "run.output=/tmp/x", "run.seed=9"});
  EXPECT_EQ(config.optimizer.lr, 0.25);
  EXPECT_EQ(config.run.name, "2026");
  EXPECT_EQ(config.run.output, "/tmp/x");
  EXPECT_EQ(config.run.seed, 9);
  EXPECT_EQ(config.data.train, std::vector<std::string>{"a b/c-*.h5"});
  EXPECT_EQ(config.data.validation, (std::vector<std::string>{"v1.h5", "v2.h5"}));
}

TEST(ConfigFile, UnreadableFilesAreNamed) {
  EXPECT_THROW(load_config("/nonexistent/run.toml"), std::invalid_argument);
  try {
    load_config("/nonexistent/run.toml");
  } catch (const std::invalid_argument& error) {
    expect_begins(error.what(), "/nonexistent/run.toml: the config cannot be read: No such file");
  }
  EXPECT_THROW(load_config("/"), std::invalid_argument);
}

TEST(ConfigFile, TheRepositorysConfigsAreValid) {
  int found = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(CHASKI_SOURCE_DIR) + "/configs")) {
    if (entry.path().extension() != ".toml") continue;
    ++found;
    EXPECT_NO_THROW(load_config(entry.path())) << entry.path();
  }
  EXPECT_GT(found, 0);
}

}  // namespace
}  // namespace chaski
