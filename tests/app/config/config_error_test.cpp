#include <algorithm>
#include <cstdlib>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <random>
#include <string>
#include <vector>

#include "app/config/config.h"
#include "app/config/schema.h"
#include "tests/app/config/config_text.h"

namespace chaski {
namespace {

TEST(ConfigErrors, UnknownKeyNamesLineAndNearest) {
  const std::string error = error_of(kMinimalConfig + "\n[optimizer]\nlearning_rate = 1\n");
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
  expect_begins(error_of_override("model.moc=64"),
                "--set model.moc=64: unknown key model.moc\nhint: [model.moc] is a table; its keys "
                "are keep, ");
}

TEST(ConfigErrors, UnknownTables) {
  const std::string error = error_of(kMinimalConfig + "\n[optimiser]\nlr = 1\n");
  expect_begins(error, "run.toml:10: unknown table [optimiser]\nhint: did you mean [optimizer]?");
  expect_begins(error_of(kMinimalConfig + "\n[model.mocs]\nkeep = 1\n"),
                "run.toml:10: unknown table [model.mocs]\nhint: did you mean [model.moc]?");
  expect_begins(error_of("lr = 1\n" + kMinimalConfig),
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
    const std::string error = error_of(kMinimalConfig + "\n" + text + "\n");
    const int line = text.rfind("[run.seed]", 0) == 0 ? 10 : 11;
    expect_begins(error, fmt::format("run.toml:{}: {}", line, message));
  }
  expect_contains(error_of(kMinimalConfig + "[evaluation]\nevery = 1e3\n"), "hint: write 1000");
  expect_begins(error_of("[data]\ntrain = [1]\n[model]\npreset = \"llama-9m\"\n"),
                "run.toml:2: data.train is an array of 1 value but must be a string or an array");
}

TEST(ConfigErrors, ValuesOutOfRange) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"optimizer.lr=0", "optimizer.lr is 0 but must be above 0"},
      {"optimizer.lr=-0.1", "optimizer.lr is -0.1 but must be above 0"},
      {"optimizer.lr=nan", "optimizer.lr is nan but must be finite and above 0"},
      {"optimizer.lr=inf", "optimizer.lr is inf but must be finite and above 0"},
      {"optimizer.betas=[0.9, 1.0]", "optimizer.betas is 1 but must be from 0 to 0.9999999"},
      {"optimizer.betas=[-0.1, 0.9]", "optimizer.betas is -0.1 but must be from 0 to 0.9999999"},
      {"optimizer.epsilon=1", "optimizer.epsilon is 1 but must be at least 1e-30 and below 1"},
      {"optimizer.epsilon=0", "optimizer.epsilon is 0 but must be at least 1e-30 and below 1"},
      {"optimizer.weight_decay=1000",
       "optimizer.weight_decay is 1000 but must be at least 0 and below 1000"},
      {"schedule.min_lr_ratio=1.5", "schedule.min_lr_ratio is 1.5 but must be from 0 to 1"},
      {"schedule.steps=0", "schedule.steps is 0 but must be at least 1"},
      {"parallel.micro_batch=-4", "parallel.micro_batch is -4 but must be at least 1"},
      {"parallel.micro_batch=9223372036854775807",
       "parallel.micro_batch is 9223372036854775807 but must be from 1 to 1000000"},
      {"run.threads=-1", "run.threads is -1 but must be from 0 to 4096"},
      {"model.ffn=gelu", "model.ffn is \"gelu\" but must be one of \"swiglu\", \"moc\""},
      {"model.preset=llama-8b", "model.preset is \"llama-8b\" but must be one of \"llama-9m\""},
      {"optimizer.name=sgd", "optimizer.name is \"sgd\" but must be \"adamw\""},
      {"schedule.kind=exponential",
       "schedule.kind is \"exponential\" but must be one of \"constant\", \"linear\""},
      {"device.precision=fp16", "device.precision is \"fp16\" but must be one of \"auto\""},
  };
  for (const auto& [override_text, message] : cases) {
    expect_begins(error_of_override(override_text), "--set " + override_text + ": " + message);
  }
}

TEST(ConfigErrors, ChannelsThatCannotBeKept) {
  const auto error_with_moc = [](const std::string& override_text) {
    return error_of(kMinimalConfig, {"model.ffn=moc", override_text});
  };
  const std::string range =
      "but must be a count of at least 1, or a share above 0.0 and at most 1.0";
  for (const char* value : {"0", "-3", "0.0", "-0.5", "1.5", "nan", "inf"}) {
    const std::string text = fmt::format("model.moc.keep={}", value);
    const std::string error = error_with_moc(text);
    expect_begins(error, fmt::format("--set {}: model.moc.keep is {}", text, value));
    expect_contains(error, range);
  }
  expect_begins(
      error_with_moc("model.moc.keep=all"),
      "--set model.moc.keep=all: model.moc.keep is the string \"all\" but must be a count "
      "or a share");
  expect_begins(error_with_moc("model.moc.keep=353"),
                "--set model.moc.keep=353: model.moc.keep = 353 is not allowed: must lie between 1 "
                "and model.intermediate_size = 352");
  expect_begins(
      error_of(kMinimalConfig, {"model.ffn=moc", "model.moc.pattern=2:8", "model.moc.keep=64"}),
      "--set model.moc.keep=64: model.moc.keep = 64 is not allowed: model.moc.pattern = "
      "\"2:8\" keeps 88 of model.intermediate_size = 352");
  expect_begins(error_of(kMinimalConfig, {"model.ffn=moc", "model.intermediate_size=70000"}),
                "--set model.intermediate_size=70000: model.intermediate_size = 70000 is not "
                "allowed: must be at most 65535 with model.ffn");
  expect_begins(
      error_of_override("model.moc.keep=64"),
      "--set model.moc.keep=64: model.moc.keep has no effect with model.ffn = \"swiglu\"");
  expect_begins(error_of_override("model.mok.keep=64"), "--set model.mok.keep=64: unknown table");
  expect_begins(error_of(kMinimalConfig + "[model.mok]\nkeep = 7\n"),
                "run.toml:9: unknown table [model.mok]\nhint: did you mean [model.moc]?");
  expect_contains(error_of_override("device.activations=recompute"),
                  "did you mean model.recompute");
}

// Each names the key, the value and what is allowed, and where it was given.
TEST(ConfigErrors, KindsOfFeedForwardNetworksThatDoNotExist) {
  struct Slip {
    const char* key;
    const char* value;
    const char* allowed;
  };
  for (const Slip& slip :
       {Slip{"model.ffn", "topk", "must be one of \"swiglu\", \"moc\""},
        Slip{"model.recompute", "all", "must be one of \"none\", \"elementwise\", \"block\""},
        Slip{"model.moc.pattern", "2:4", "must be one of \"topk\", \"2:8\""},
        Slip{"model.moc.selection", "silu", "must be one of \"gate\", \"silu-magnitude\""},
        Slip{"model.moc.index", "int16", "must be one of \"auto\", \"uint16\", \"bitmap\""}}) {
    const std::string key = slip.key;
    const std::string told = fmt::format("{} is \"{}\" but {}", key, slip.value, slip.allowed);
    const std::string text = fmt::format("{}={}", key, slip.value);
    expect_begins(error_of(kMinimalConfig, {"model.ffn=moc", text}), "--set " + text + ": " + told);
    const std::size_t dot = key.rfind('.');
    const std::string line = fmt::format("{} = \"{}\"\n", key.substr(dot + 1), slip.value);
    const bool of_moc = key.substr(0, dot) == "model.moc";
    const std::string file =
        of_moc ? kMinimalConfig + "[model.moc]\n" + line
               : "[model]\n" + line + kMinimalConfig.substr(kMinimalConfig.find('\n') + 1);
    expect_begins(error_of(file), fmt::format("run.toml:{}: {}", of_moc ? 10 : 2, told));
    for (const char* value : {"8", "0.5", "[\"none\"]", "true"}) {
      const std::string wrong = fmt::format("{}={}", key, value);
      const std::string error = error_of(kMinimalConfig, {"model.ffn=moc", wrong});
      expect_begins(error, fmt::format("--set {}: {} is ", wrong, key));
      expect_contains(error, slip.allowed);
    }
  }
}

TEST(ConfigErrors, KeysOfMocThatHaveNoEffectOrCannotBeTogether) {
  for (const char* text : {"model.moc.keep=0.5", "model.moc.pattern=2:8",
                           "model.moc.selection=silu-magnitude", "model.moc.index=bitmap"}) {
    const std::string argument = text;
    const std::string key = argument.substr(0, argument.find('='));
    expect_begins(error_of_override(argument),
                  fmt::format("--set {}: {} has no effect with model.ffn = \"swiglu\"\nhint: set "
                              "model.ffn = \"moc\"",
                              argument, key));
  }
  expect_begins(error_of(kMinimalConfig + "[model.moc]\nkeep = 64\n"),
                "run.toml:10: model.moc.keep has no effect with model.ffn = \"swiglu\"");
  const std::string moc = kMinimalConfig + "[model.moc]\nkeep = ";
  for (const char* value : {"0", "-1", "0.0", "-0.25", "1.01", "nan", "-inf"}) {
    const std::string error = error_of(moc + value + "\n", {"model.ffn=moc"});
    expect_begins(error, fmt::format("run.toml:10: model.moc.keep is {} but must be a count of at "
                                     "least 1, or a share above 0.0 and at most 1.0",
                                     value));
  }
  for (const char* value : {"true", "[1]", "{ ratio = 0.5 }", "\"64\""})
    expect_begins(error_of(moc + value + "\n", {"model.ffn=moc"}),
                  "run.toml:10: model.moc.keep is ");
  expect_begins(error_of(moc + "353\n", {"model.ffn=moc"}),
                "run.toml:10: model.moc.keep = 353 is not allowed: must lie between 1 and "
                "model.intermediate_size = 352");
  expect_begins(error_of(moc + "0.2\npattern = \"2:8\"\n", {"model.ffn=moc"}),
                "run.toml:10: model.moc.keep = 0.2 is not allowed: model.moc.pattern = \"2:8\" "
                "keeps a quarter");
  // No form of the indices holds more channels.
  for (const char* form : {"uint16", "bitmap"}) {
    const std::string index = fmt::format("model.moc.index={}", form);
    expect_begins(
        error_of(kMinimalConfig, {"model.ffn=moc", index, "model.intermediate_size=65536"}),
        "--set model.intermediate_size=65536: model.intermediate_size = 65536 is not "
        "allowed: must be at most 65535 with model.ffn = \"moc\"");
    EXPECT_EQ(parse(kMinimalConfig, {"model.ffn=moc", index, "model.intermediate_size=65535"})
                  .model.llama.moc->keep,
              64);
  }
}

TEST(ConfigErrors, ContradictionsNameTheKeysLine) {
  expect_begins(error_of(kMinimalConfig + "warmup_steps = 2000\n"),
                "run.toml:9: schedule.warmup_steps is 2000 but must be at most schedule.steps");
  expect_begins(error_of_override("schedule.decay_steps=5"),
                "--set schedule.decay_steps=5: schedule.decay_steps is 5 but must be 0 with");
  expect_begins(error_of(kMinimalConfig, {"schedule.kind=wsd", "schedule.decay_steps=950"}),
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
  expect_begins(error_of_override("device.stochastic_rounding=true"),
                "--set device.stochastic_rounding=true: device.stochastic_rounding is true but "
                "device.precision is not \"bf16-pure\"");
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
    expect_begins(error_of(kMinimalConfig + header + "\n"), "run.toml:9: not valid TOML: ");
  }
  for (const char* header : {"[]", "[[]]", "[run", "[\"run"}) {
    expect_begins(error_of(kMinimalConfig + header), "run.toml:9: not valid TOML: ");
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
  const std::string whole = to_toml(parse(kMinimalConfig));
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

}  // namespace
}  // namespace chaski
