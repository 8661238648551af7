#include <filesystem>
#include <gtest/gtest.h>

#include "app/config/config.h"
#include "model/huggingface.h"
#include "tests/fuzz/fuzz_files.h"
#include "tests/fuzz/guarded_read.h"
#include "tests/fuzz/text_mutation.h"

namespace chaski {
namespace {

const std::string kMinimal =
    "[model]\npreset = \"llama-9m\"\n[data]\ntrain = \"a.h5\"\n[schedule]\nsteps = 10\n";

// The repository's own configs, and one with every key.
std::vector<std::string> configs() {
  std::vector<std::string> texts{kMinimal, to_toml(parse_config(kMinimal, "minimal"), false)};
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(CHASKI_SOURCE_DIR) + "/configs"))
    if (entry.path().extension() == ".toml") texts.push_back(read_file(entry.path()));
  std::sort(texts.begin() + 2, texts.end());
  return texts;
}

TEST(ReaderFuzz, Configs) {
  TextMutator mutator(fuzz_seed());
  const std::vector<std::string> originals = configs();
  int read = 0, refused = 0;
  for (int i = 0; i < scaled(6000); ++i) {
    const std::string text =
        mutator.mutate(originals[static_cast<std::size_t>(i) % originals.size()]);
    const bool accepted = read_guarded("config", text, [&] {
      const TrainConfig config = parse_config(text, "run.toml");
      // What is accepted must be a config: printed, it reads back as the same.
      if (!(parse_config(to_toml(config), "printed") == config))
        throw std::logic_error("reads back as another config");
    });
    ++(accepted ? read : refused);
  }
  EXPECT_GT(read, scaled(100));
  EXPECT_GT(refused, scaled(1000));
}

TEST(ReaderFuzz, ConfigOverrides) {
  TextMutator mutator(fuzz_seed());
  const std::string originals[] = {"optimizer.lr=1e-3", "optimizer.betas=[0.9,0.95]",
                                   "data.train=[\"a.h5\",\"b*.h5\"]", "run.name=x1",
                                   "schedule.kind=cosine"};
  for (int i = 0; i < scaled(2000); ++i) {
    const std::string text = mutator.mutate(originals[i % 5]);
    read_guarded("config-override", text, [&] { parse_config(kMinimal, "run.toml", {text}); });
  }
}

TEST(ReaderFuzz, HuggingFaceConfigs) {
  TextMutator mutator(fuzz_seed());
  LlamaConfig config = llama_preset("llama-60m");
  const std::string original = huggingface_config(config, {1, 2, -1, 0});
  int read = 0, refused = 0;
  for (int i = 0; i < scaled(4000); ++i) {
    const std::string text = mutator.mutate(original);
    const bool accepted = read_guarded("config-json", text, [&] {
      const LlamaConfig model = parse_huggingface_config(text, "config.json");
      // As a checkpoint keeps it.
      if (!(parse_huggingface_config(huggingface_config(model, {}), "again") == model))
        throw std::logic_error("reads back as another model");
    });
    ++(accepted ? read : refused);
  }
  EXPECT_GT(read, scaled(100));
  EXPECT_GT(refused, scaled(500));
}

}  // namespace
}  // namespace chaski
