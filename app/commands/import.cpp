#include <algorithm>
#include <fmt/format.h>
#include <memory>
#include <set>
#include <stdexcept>

#include "app/commands/commands.h"
#include "app/config/config.h"
#include "app/console/version.h"
#include "data/tokenizer.h"
#include "fault/checkpoint/writer.h"
#include "model/huggingface.h"
#include "model/safetensors.h"

namespace chaski {
namespace {

struct ImportArguments {
  std::string directory;
  std::string out;
  std::string tokenizer;
  std::vector<std::string> settings;
};

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::vector<std::int64_t> dims_of(const Shape& shape) {
  std::vector<std::int64_t> dims;
  for (int i = 0; i < shape.rank(); ++i) dims.push_back(shape[i]);
  return dims;
}

LlamaConfig read_config(const std::string& directory) {
  const std::string path = join_path(directory, "config.json");
  constexpr std::uint64_t kMaxBytes = 1U << 20;
  if (!posix_file_system().status(path))
    throw std::invalid_argument(
        fmt::format("{}: holds no config.json\nhint: give a directory as written by "
                    "save_pretrained() or `chaski export`",
                    directory));
  return parse_huggingface_config(read_whole_file(posix_file_system(), path, kMaxBytes), path);
}

// The model with other channels of its FFN, as --set asks for.
LlamaConfig with_settings(const LlamaConfig& model, const std::vector<std::string>& settings) {
  if (settings.empty()) return model;
  TrainConfig config;
  config.model.llama = model;
  config.data.train = {"unused"};
  config.data.sequence_length = 1;
  config.schedule.steps = 1;
  std::string ffn = model.moc ? "moc" : "swiglu";
  std::string pattern = model.moc ? name_of(model.moc->pattern) : "";
  const std::string pattern_before = pattern;
  for (const std::string& setting : settings) {
    const auto sets = [&](const char* key) { return setting.rfind(key, 0) == 0; };
    const bool chooses_ffn = sets("model.ffn=");
    const std::string value = setting.substr(std::min(setting.size(), setting.find('=') + 1));
    if (chooses_ffn) ffn = value;
    if (sets("model.moc.pattern=")) pattern = value;
    if (sets("model.moc.index="))
      throw std::invalid_argument(
          fmt::format("--set {}: a checkpoint does not hold how indices are kept while training\n"
                      "hint: set model.moc.index in the config of the run",
                      setting));
    if (chooses_ffn || sets("model.moc.")) continue;
    throw std::invalid_argument(
        fmt::format("--set {}: only model.ffn and the keys of [model.moc] can be set here\n"
                    "hint: for example --set model.ffn=moc --set model.moc.keep=256",
                    setting));
  }
  std::vector<std::string> all;  // later ones win
  if (model.moc && ffn == "moc") {
    all = {"model.ffn=moc", fmt::format("model.moc.selection={}", name_of(model.moc->score)),
           fmt::format("model.moc.pattern={}", pattern_before)};
    // Another pattern keeps another number.
    if (pattern == pattern_before) all.push_back(fmt::format("model.moc.keep={}", model.moc->keep));
  }
  all.insert(all.end(), settings.begin(), settings.end());
  return parse_config(to_toml(config, false), "config.json", all).model.llama;
}

std::shared_ptr<const Tokenizer> read_tokenizer(const ImportArguments& arguments,
                                                const LlamaConfig& config) {
  const std::string path = arguments.tokenizer.empty()
                               ? join_path(arguments.directory, "tokenizer.model")
                               : arguments.tokenizer;
  if (!posix_file_system().status(path))
    throw std::invalid_argument(
        fmt::format("{}: does not exist\nhint: give the model's SentencePiece file with "
                    "--tokenizer FILE.model",
                    path));
  auto tokenizer = Tokenizer::load(path);
  if (tokenizer->vocab_size() > config.vocab_size)
    throw std::invalid_argument(fmt::format("{}: has {} tokens, but the model has only {}", path,
                                            tokenizer->vocab_size(), config.vocab_size));
  return tokenizer;
}

// Weights that other programs write although the model has no such parameter.
bool is_redundant(const std::string& name, const LlamaConfig& config) {
  return name.ends_with(".rotary_emb.inv_freq") ||
         (config.tie_embeddings && name == "lm_head.weight");
}

void check_tensors(const SafetensorsReader& reader, const LlamaConfig& config,
                   const std::string& directory) {
  std::set<std::string> expected;
  for (const WeightShape& weight : huggingface_weights(config)) {
    const SafetensorsEntry* entry = reader.find(weight.name);
    if (entry == nullptr)
      throw std::invalid_argument(fmt::format("{}: holds no {}", directory, weight.name));
    if (entry->shape != dims_of(weight.shape))
      throw std::invalid_argument(fmt::format("{}: {} is {}, but its config.json wants {}",
                                              entry->file, weight.name, shape_text(entry->shape),
                                              weight.shape.to_string()));
    expected.insert(weight.name);
  }
  for (const SafetensorsEntry& entry : reader.entries())
    if (expected.count(entry.name) == 0 && !is_redundant(entry.name, config))
      throw std::invalid_argument(
          fmt::format("{}: holds {} {}, which its config.json does not have", entry.file,
                      entry.name, shape_text(entry.shape)));
}

CheckpointMetadata make_metadata(const LlamaConfig& config, const Tokenizer& tokenizer) {
  CheckpointMetadata metadata;
  metadata.model = config;
  metadata.precision = {{"weights", "f32"}};
  metadata.tokenizer_fingerprint = tokenizer.fingerprint();
  metadata.tokenizer_model = tokenizer.serialized();
  metadata.versions = {{"chaski", program_version()}, {"commit", program_commit()}};
  return metadata;
}

void run_import(const ImportArguments& arguments) {
  const LlamaConfig stored = read_config(arguments.directory);
  const LlamaConfig config = with_settings(stored, arguments.settings);
  const auto tokenizer = read_tokenizer(arguments, config);
  const SafetensorsReader reader(arguments.directory);
  check_tensors(reader, config, arguments.directory);
  std::vector<float> values;  // of the tensor whose turn it is
  std::vector<TensorRecord> records;
  for (const WeightShape& weight : huggingface_weights(config)) {
    const SafetensorsEntry& entry = *reader.find(weight.name);
    records.push_back(
        {"weights/" + weight.name, DType::f32, weight.shape,
         [&reader, &entry, &values](std::int64_t offset, std::int64_t) -> const void* {
           if (offset == 0) {
             values.resize(static_cast<std::size_t>(entry.num_elements()));
             reader.read_f32(entry, values.data());
           }
           return reinterpret_cast<const char*>(values.data()) + offset;
         }});
  }
  write_checkpoint(arguments.out, make_metadata(config, *tokenizer), records);
  fmt::print("imported    {}: {} tensors; {}\ncheckpoint  {}\n", arguments.directory,
             records.size(), config.describe_ffn(), arguments.out);
  if (!(config.moc == stored.moc)) {
    fmt::print(stderr,
               "chaski: warning: the model was trained with {}: it is of no use with {} before it "
               "has been trained on\n",
               stored.describe_ffn(), config.describe_ffn());
  }
}

}  // namespace

void register_import_command(CLI::App& app) {
  auto arguments = std::make_shared<ImportArguments>();
  CLI::App* command = app.add_subcommand(
      "import", "Make a checkpoint from a Hugging Face LLaMA (safetensors and config.json)");
  command->add_option("DIR", arguments->directory, "Directory with the model")->required();
  command->add_option("--out", arguments->out, "Checkpoint directory to write")
      ->required()
      ->type_name("PATH");
  command
      ->add_option("--tokenizer", arguments->tokenizer,
                   "SentencePiece model; default: DIR/tokenizer.model")
      ->type_name("FILE.model");
  command
      ->add_option(
          "--set", arguments->settings,
          "Go on with other channels of the FFN: model.ffn=moc, model.moc.keep=256, …; may "
          "be repeated")
      ->type_name("KEY=VALUE")
      ->take_all()
      ->allow_extra_args(false);
  command->callback([arguments] { run_import(*arguments); });
}

}  // namespace chaski
