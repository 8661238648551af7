#include "app/config.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <gtest/gtest.h>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "app/config_schema.h"

namespace chaski {
namespace {

const std::string kMinimal = R"([model]
preset = "llama-9m"

[data]
train = "corpus.h5"

[schedule]
steps = 1000
)";

TrainConfig parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return parse_config(text, "run.toml", overrides);
}

// The error of a config that must be refused.
std::string error_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    parse(text, overrides);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error for:\n" << text;
  return "";
}

std::string error_of_override(const std::string& override_text) {
  return error_of(kMinimal, {override_text});
}

void expect_begins(const std::string& text, const std::string& beginning) {
  EXPECT_EQ(text.substr(0, beginning.size()), beginning) << text;
}

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "not in: " << text << "\nlooked for: " << part;
}

TEST(Config, MinimalGetsDefaults) {
  const TrainConfig config = parse(kMinimal);
  EXPECT_EQ(config.run.output, "runs/run");
  EXPECT_EQ(config.model.llama.hidden_size, 128);
  EXPECT_EQ(config.model.llama.vocab_size, 32000);
  EXPECT_EQ(config.data.train, std::vector<std::string>{"corpus.h5"});
  EXPECT_EQ(config.schedule.warmup_steps, 100);
  EXPECT_EQ(config.schedule.decay_steps, 0);
  EXPECT_EQ(config.checkpoint_directory(), "runs/run/checkpoints");
  EXPECT_EQ(config.metrics_path(), "runs/run/metrics.jsonl");
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
[device]
activations = "recompute"
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
  EXPECT_EQ(config.adamw_options().beta1, 0.8);
  EXPECT_EQ(config.adamw_options().beta2, 0.99);
  EXPECT_EQ(config.optimizer.weight_decay, 0.0);
  EXPECT_EQ(config.schedule.kind, DecayKind::warmup_stable_decay);
  EXPECT_EQ(config.schedule.warmup_steps, 5);
  EXPECT_EQ(config.schedule.decay_steps, 10);
  EXPECT_EQ(config.learning_rate_schedule().decay_steps, 10);
  EXPECT_EQ(config.parallel.schedule, ScheduleKind::gpipe);
  EXPECT_EQ(config.device.activations, ActivationPolicy::recompute);
}

TEST(Config, ChoicesMeanWhatTheyAreCalled) {
  for (const char* name : {"constant", "linear", "cosine", "wsd"}) {
    const auto kind = parse(kMinimal, {fmt::format("schedule.kind={}", name)}).schedule.kind;
    EXPECT_STREQ(name_of(kind), name);
  }
  for (const char* name : {"gpipe", "1f1b"}) {
    const auto kind =
        parse(kMinimal, {fmt::format("parallel.schedule={}", name)}).parallel.schedule;
    EXPECT_STREQ(name_of(kind), name);
  }
  EXPECT_EQ(parse(kMinimal, {"device.activations=exact"}).device.activations,
            ActivationPolicy::exact);
  EXPECT_EQ(parse(kMinimal, {"run.nonfinite=skip"}).run.nonfinite, NonfinitePolicy::skip);
  EXPECT_EQ(parse(kMinimal, {"log.console=off"}).log.console, ConsoleMode::off);
  EXPECT_EQ(parse(kMinimal, {"device.backend=cpu"}).device.backend, BackendChoice::cpu);
}

TEST(Config, PresetIsChangedKeyByKey) {
  const TrainConfig config =
      parse(kMinimal, {"model.vocab_size=4096", "model.num_heads=8", "model.hidden_size=256"});
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
  };
  for (const auto& overrides : variants) {
    const TrainConfig config = parse(kMinimal, overrides);
    for (const bool comments : {true, false}) {
      const std::string text = to_toml(config, comments);
      EXPECT_EQ(parse(text), config) << text;
      EXPECT_EQ(to_toml(parse(text), comments), text);
    }
  }
}

TEST(Config, PrintedConfigHasEveryKeyExplained) {
  const std::string text = to_toml(parse(kMinimal));
  for (const ConfigKey& key : config_keys()) {
    expect_contains(text, "\n" + key.name + " = ");
    expect_contains(text, "# " + key.documentation.substr(0, 20));
  }
}

TEST(Config, ReferencePageIsUpToDate) {
  std::ifstream file(std::string(CHASKI_SOURCE_DIR) + "/docs/config.md");
  const std::string page{std::istreambuf_iterator<char>(file), {}};
  EXPECT_TRUE(page == config_reference()) << "run: chaski config-reference > docs/config.md";
  for (const ConfigKey& key : config_keys()) expect_contains(page, "| `" + key.name + "` |");
}

TEST(Config, KeysAreUniqueAndDocumented) {
  for (const ConfigKey& key : config_keys()) {
    EXPECT_EQ(find_config_key(key.dotted_name()), &key) << key.dotted_name();
    EXPECT_FALSE(key.documentation.empty());
    EXPECT_NE(key.documentation.back(), '.') << key.dotted_name();
  }
}

TEST(Config, OverridesReplaceValuesInOrder) {
  const TrainConfig config = parse(
      kMinimal, {"optimizer.lr=0.5", "optimizer.lr=0.25", "run.name=2026", "data.train=a b/c-*.h5",
                 "data.validation=['v1.h5', 'v2.h5']", "run.output=/tmp/x", "run.seed=9"});
  EXPECT_EQ(config.optimizer.lr, 0.25);
  EXPECT_EQ(config.run.name, "2026");
  EXPECT_EQ(config.run.output, "/tmp/x");
  EXPECT_EQ(config.run.seed, 9);
  EXPECT_EQ(config.data.train, std::vector<std::string>{"a b/c-*.h5"});
  EXPECT_EQ(config.data.validation, (std::vector<std::string>{"v1.h5", "v2.h5"}));
}

TEST(ConfigErrors, UnknownKeyNamesLineAndNearest) {
  const std::string error = error_of(kMinimal + "\n[optimizer]\nlearning_rate = 1\n");
  expect_begins(error, "run.toml:11: unknown key optimizer.learning_rate\nhint: ");
  expect_contains(error, "did you mean optimizer.lr?");
}

TEST(ConfigErrors, MisspeltKeysAreRecognised) {
  const std::vector<std::pair<std::string, std::string>> slips = {
      {"optimizer.wieght_decay=1", "optimizer.weight_decay"},
      {"model.hiden_size=1", "model.hidden_size"},
      {"model.n_layers=1", "model.num_layers"},
      {"optimizer.micro_batch=1", "parallel.micro_batch"},
      {"data.seq_len=1", "data.sequence_length"},
      {"schedule.max_steps=1", "schedule.steps"},
      {"parallel.batch_size=1", "parallel.micro_batch"},
      {"run.output_dir=x", "run.output"},
      {"checkpoint.save_interval=1", "checkpoint.every"},
      {"data.warmup_steps=1", "schedule.warmup_steps"},
  };
  for (const auto& [slip, meant] : slips) {
    const std::string error = error_of_override(slip);
    expect_begins(error, "--set " + slip + ": unknown key " + slip.substr(0, slip.find('=')));
    expect_contains(error, "did you mean " + meant);
  }
  expect_contains(error_of_override("data.zzzzzzzzzz=1"), "the keys of [data] are train, ");
}

TEST(ConfigErrors, UnknownTables) {
  const std::string error = error_of(kMinimal + "\n[optimiser]\nlr = 1\n");
  expect_begins(error, "run.toml:10: unknown table [optimiser]\nhint: did you mean [optimizer]?");
  expect_begins(error_of(kMinimal + "\n[model.moc]\nkeep = 1\n"),
                "run.toml:10: unknown table [model.moc]");
  expect_begins(error_of("lr = 1\n" + kMinimal),
                "run.toml:1: unknown key lr\nhint: did you mean "
                "optimizer.lr");
  expect_contains(error_of_override("quux.lr=1"), "the tables are [run], [model]");
}

TEST(ConfigErrors, WrongTypesNameWhatIsWanted) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"[run]\nseed = \"x\"", "run.seed is the string \"x\" but must be an integer"},
      {"[run]\nseed = 1.5", "run.seed is the number 1.5 but must be an integer"},
      {"[run]\nseed = true", "run.seed is true but must be an integer"},
      {"[run]\nseed = 2026-01-01", "run.seed is a date or time but must be an integer"},
      {"[run]\nname = 3", "run.name is the integer 3 but must be a string"},
      {"[optimizer]\nlr = \"big\"", "optimizer.lr is the string \"big\" but must be a number"},
      {"[optimizer]\nlr = [1]", "optimizer.lr is an array of 1 value but must be a number"},
      {"[optimizer]\nbetas = 0.9", "optimizer.betas is the number 0.9 but must be an array of two"},
      {"[optimizer]\nbetas = [0.9]", "optimizer.betas is an array of 1 value but must be an array"},
      {"[optimizer]\nbetas = [0.9, \"x\"]", "optimizer.betas is an array of 2 values but must be"},
      {"[checkpoint]\nasync = 1", "checkpoint.async is the integer 1 but must be true or false"},
      {"[run.seed]\nx = 1", "run.seed is a table but must be an integer"},
  };
  for (const auto& [text, message] : cases) {
    const std::string error = error_of(kMinimal + "\n" + text + "\n");
    const int line = text.rfind("[run.seed]", 0) == 0 ? 10 : 11;
    expect_begins(error, fmt::format("run.toml:{}: {}", line, message));
  }
  expect_contains(error_of(kMinimal + "[evaluation]\nevery = 1e3\n"), "hint: write 1000");
  expect_begins(error_of("[data]\ntrain = [1]\n[model]\npreset = \"llama-9m\"\n"),
                "run.toml:2: data.train is an array of 1 value but must be a string or an array");
}

TEST(ConfigErrors, ValuesOutOfRange) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"optimizer.lr=0", "optimizer.lr is 0 but must be above 0"},
      {"optimizer.lr=-0.1", "optimizer.lr is -0.1 but must be above 0"},
      {"optimizer.lr=nan", "optimizer.lr is nan but must be finite and above 0"},
      {"optimizer.lr=inf", "optimizer.lr is inf but must be finite and above 0"},
      {"optimizer.betas=[0.9, 1.0]", "optimizer.betas is 1 but must be at least 0 and below 1"},
      {"schedule.min_lr_ratio=1.5", "schedule.min_lr_ratio is 1.5 but must be from 0 to 1"},
      {"schedule.steps=0", "schedule.steps is 0 but must be at least 1"},
      {"parallel.micro_batch=-4", "parallel.micro_batch is -4 but must be at least 1"},
      {"parallel.micro_batch=9223372036854775807",
       "parallel.micro_batch is 9223372036854775807 but must be from 1 to 1000000"},
      {"run.threads=-1", "run.threads is -1 but must be from 0 to 4096"},
      {"model.ffn=gelu", "model.ffn is \"gelu\" but must be \"swiglu\""},
      {"model.preset=llama-8b", "model.preset is \"llama-8b\" but must be one of \"llama-9m\""},
      {"optimizer.name=sgd", "optimizer.name is \"sgd\" but must be \"adamw\""},
      {"schedule.kind=exponential",
       "schedule.kind is \"exponential\" but must be one of \"constant\", \"linear\""},
      {"device.precision=bf16", "device.precision is \"bf16\" but must be one of \"auto\""},
  };
  for (const auto& [override_text, message] : cases) {
    expect_begins(error_of_override(override_text), "--set " + override_text + ": " + message);
  }
}

TEST(ConfigErrors, ContradictionsNameTheKeysLine) {
  expect_begins(error_of(kMinimal + "warmup_steps = 2000\n"),
                "run.toml:9: schedule.warmup_steps is 2000 but must be at most schedule.steps");
  expect_begins(error_of_override("schedule.decay_steps=5"),
                "--set schedule.decay_steps=5: schedule.decay_steps is 5 but must be 0 with");
  expect_begins(error_of(kMinimal, {"schedule.kind=wsd", "schedule.decay_steps=950"}),
                "--set schedule.decay_steps=950: schedule.decay_steps is 950 but only 900 steps");
  expect_begins(error_of_override("data.sequence_length=4096"),
                "--set data.sequence_length=4096: data.sequence_length is 4096 but must be at most "
                "model.max_position_embeddings, which is 1024");
  expect_begins(
      error_of_override("parallel.global_batch=12"),
      "--set parallel.global_batch=12: parallel.global_batch is 12 but must be a multiple "
      "of micro_batch × replicas = 8 × 1 = 8");
  expect_begins(error_of_override("parallel.pipeline=99"),
                "--set parallel.pipeline=99: parallel.pipeline is 99 but the model has only");
  expect_begins(error_of_override("fault.tolerate=true"),
                "--set fault.tolerate=true: fault.tolerate is true but must be false");
  expect_begins(error_of_override("device.backend=cuda"),
                "--set device.backend=cuda: device.backend is \"cuda\" but this program is built");
  expect_begins(error_of_override("run.name=a/b"), "--set run.name=a/b: run.name is \"a/b\"");
  const std::string heads = error_of_override("model.num_heads=3");
  expect_begins(heads, "--set model.num_heads=3: ");
  const std::string kv_heads = error_of_override("model.num_kv_heads=3");
  expect_begins(kv_heads, "--set model.num_kv_heads=3: ");
}

TEST(ConfigErrors, MissingKeys) {
  expect_begins(error_of("[data]\ntrain = \"x\"\n[schedule]\nsteps = 1\n"),
                "run.toml: model.hidden_size is missing");
  expect_begins(error_of("[model]\npreset = \"llama-9m\"\n[schedule]\nsteps = 1\n"),
                "run.toml: data.train is missing");
  expect_begins(error_of("[model]\npreset = \"llama-9m\"\n[data]\ntrain = \"x\"\n"),
                "run.toml: schedule.steps is missing");
  expect_begins(error_of(""), "run.toml: model.hidden_size is missing");
}

TEST(ConfigErrors, BrokenTomlNamesTheLine) {
  expect_begins(error_of("[run]\nname = \n"), "run.toml:2: not valid TOML: ");
  expect_begins(error_of("[run]\nseed = 1\nseed = 2\n"), "run.toml:3: not valid TOML: ");
  expect_begins(error_of(std::string("[run]\nname = \"\xff\"\n")), "run.toml:2: not valid TOML: ");
}

TEST(ConfigErrors, NamelessTables) {
  for (const char* header : {"[.a]", "[=]", "[#]", "[", "[[.]]", "[ ", "[[", "[\xff]"}) {
    expect_begins(error_of(kMinimal + header + "\n"), "run.toml:9: not valid TOML: ");
  }
  for (const char* header : {"[]", "[[]]", "[run", "[\"run"}) {
    expect_begins(error_of(kMinimal + header), "run.toml:9: not valid TOML: ");
  }
}

TEST(ConfigErrors, WhatAnErrorRepeatsStaysOnItsLine) {
  for (const std::string& error :
       {error_of("[run]\nseed = tr\nue\n"), error_of_override("run.name=\"a\n"),
        error_of_override("no\nkey"), error_of("[a\"\n")}) {
    EXPECT_EQ(error.find('\n'), error.find("\nhint: ")) << error;
  }
  // A byte-order mark hid a nameless table from the check.
  expect_begins(error_of("\xEF\xBB\xBF[{[{"), "run.toml:1: not valid TOML: no name follows '['");
}

TEST(ConfigErrors, MalformedOverrides) {
  for (const char* text : {"optimizer.lr", "lr=1", "=", "", "optimizer=3"}) {
    expect_begins(error_of_override(text), fmt::format("--set {}: this is not of the form", text));
  }
  expect_begins(error_of_override("optimizer.betas=[0.9"),
                "--set optimizer.betas=[0.9: the value is not valid TOML");
  expect_begins(
      error_of_override("optimizer.lr=fast"),
      "--set optimizer.lr=fast: optimizer.lr is the string \"fast\" but must be a number");
  expect_contains(error_of_override("run.name=x\nseed = 3"), "must be one line of UTF-8");
  expect_contains(error_of_override("run.name=\xff"), "must be one line of UTF-8");
}

TEST(ConfigErrors, EveryMessageIsOneLineAndAHint) {
  for (const char* text : {"optimizer.lrr=1", "optimizer.lr=x", "optimizer.lr=-1",
                           "model.num_heads=3", "schedule.warmup_steps=9999999"}) {
    const std::string error = error_of_override(text);
    const std::size_t hint = error.find("\nhint: ");
    if (hint != std::string::npos) {
      EXPECT_EQ(error.find('\n'), hint) << error;
      EXPECT_EQ(error.find('\n', hint + 1), std::string::npos) << error;
    } else {
      EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    }
  }
}

// Whatever stands in the file, it is read or refused in one line; nothing else may happen.
TEST(ConfigErrors, DamagedConfigsAreReadOrRefused) {
  const std::string whole = to_toml(parse(kMinimal));
  std::mt19937 random(7);
  const std::string interesting = "[]{}=\"'#.,\n\\-+e9\0\xff_";
  int refused = 0;
  for (int round = 0; round < 400; ++round) {
    std::string text = whole;
    for (int damage = 0; damage < 3; ++damage) {
      const std::size_t at = random() % text.size();
      switch (random() % 4) {
        case 0:
          text[at] = interesting[random() % interesting.size()];
          break;
        case 1:
          text.insert(at, 1, interesting[random() % interesting.size()]);
          break;
        case 2:
          text.erase(at, 1 + random() % 8);
          break;
        case 3:
          text.insert(at, text.substr(random() % text.size(), random() % 40));
          break;
      }
    }
    try {
      const TrainConfig config = parse(text);
      EXPECT_EQ(parse(to_toml(config)), config);
    } catch (const std::invalid_argument& error) {
      ++refused;
      const std::string what = error.what();
      expect_begins(what, "run.toml");
      EXPECT_LE(std::count(what.begin(), what.end(), '\n'), 1) << what;
    }
  }
  EXPECT_GT(refused, 40);
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

TEST(Layout, DividesTheRows) {
  const auto config = parse(kMinimal, {"parallel.micro_batch=4", "parallel.global_batch=48"});
  for (const auto& [processes, micro_batches] :
       std::vector<std::pair<int, int>>{{1, 12}, {2, 6}, {3, 4}, {4, 3}, {12, 1}}) {
    const RunLayout layout = resolve_layout(config, processes);
    EXPECT_EQ(layout.num_replicas, processes);
    EXPECT_EQ(layout.num_stages, 1);
    EXPECT_EQ(layout.micro_batches, micro_batches);
  }
}

std::string layout_error(const TrainConfig& config, int processes) {
  try {
    resolve_layout(config, processes);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(Layout, PipelinesTakeTheirShareOfTheProcesses) {
  const auto config = parse(kMinimal, {"parallel.pipeline=2", "parallel.global_batch=16"});
  const RunLayout layout = resolve_layout(config, 4);
  EXPECT_EQ(layout.num_replicas, 2);
  EXPECT_EQ(layout.num_stages, 2);
  EXPECT_EQ(layout.micro_batches, 1);
}

TEST(Layout, RefusesWhatDoesNotFit) {
  const auto by_rows = parse(kMinimal, {"parallel.micro_batch=4", "parallel.global_batch=48"});
  expect_begins(layout_error(by_rows, 5),
                "parallel.global_batch is 48 but must be a multiple of "
                "micro_batch × replicas = 4 × 5 = 20\nhint: for example "
                "parallel.global_batch = 60");
  const auto fixed = parse(kMinimal, {"parallel.data=2", "parallel.global_batch=16"});
  expect_begins(layout_error(fixed, 1),
                "parallel.data is 2 but 1 process was started: data × "
                "pipeline = 2 × 1 needs 2\nhint: start it with mpirun -n 2");
  expect_begins(layout_error(fixed, 4), "parallel.data is 2 but 4 processes were started");
  const auto stages = parse(kMinimal, {"parallel.pipeline=2"});
  expect_begins(layout_error(stages, 3),
                "parallel.pipeline is 2 but 3 processes were started: data "
                "× pipeline = 1 × 2 needs 2");
  expect_begins(layout_error(stages, 1), "parallel.pipeline is 2 but 1 process was started");
}

class FilesOfAConfig : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/chaski-config-test-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
    for (const char* file : {"b.h5", "a.h5", "c.model"}) std::ofstream(folder_ / file) << "x";
    std::filesystem::create_directory(folder_ / "sub");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  RunFiles resolve(const std::vector<std::string>& overrides) {
    return resolve_files(parse(kMinimal, overrides));
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string error(const std::vector<std::string>& overrides) {
    try {
      resolve(overrides);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  }

  std::filesystem::path folder_;
};

TEST_F(FilesOfAConfig, GlobsAreSortedAndFilesNamedOnce) {
  const RunFiles files =
      resolve({fmt::format("data.train=['{}', '{}']", path("b.h5"), path("*.h5")),
               "data.tokenizer=" + path("c.model")});
  EXPECT_EQ(files.train, (std::vector<std::string>{path("b.h5"), path("a.h5")}));
  EXPECT_TRUE(files.validation.empty());
}

TEST_F(FilesOfAConfig, MissingOnesAreNamedWithTheirKey) {
  const std::string good = "data.train=" + path("a.h5");
  expect_begins(error({"data.train=" + path("z.h5")}),
                "data.train names " + path("z.h5") + ": no such file\nhint: ");
  expect_begins(error({"data.train=" + path("z*.h5")}),
                "data.train names " + path("z*.h5") + ", which matches no file");
  expect_begins(error({"data.train=" + path("sub")}), "data.train names " + path("sub") +
                                                          ", which "
                                                          "is a folder");
  expect_begins(error({good, "data.validation=" + path("v.h5")}), "data.validation names ");
  expect_begins(error({good, "data.tokenizer=" + path("t.model")}), "data.tokenizer names ");
  expect_begins(error({good, "run.output=" + path("a.h5")}), "run.output is ");
}

}  // namespace
}  // namespace chaski
