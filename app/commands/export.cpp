#include <cstring>
#include <filesystem>
#include <fmt/format.h>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "app/commands/commands.h"
#include "app/commands/loaded_model.h"
#include "app/console/human_format.h"
#include "app/console/option_checks.h"
#include "fault/checkpoint/reader.h"
#include "model/huggingface.h"
#include "model/safetensors.h"

namespace chaski {
namespace {

struct ExportArguments {
  std::string checkpoint;
  std::string out;
  std::string dtype = "fp32";
  std::uint64_t max_shard_bytes = 0;
  bool force = false;
};

void write_text(const std::string& directory, const std::string& name, const std::string& text) {
  write_file_atomically(posix_file_system(), join_path(directory, name), text);
}

SpecialTokens special_tokens_of(const Tokenizer& tokenizer) {
  SpecialTokens special;
  special.bos = tokenizer.bos_id();
  special.eos = tokenizer.eos_id();
  special.unk = tokenizer.unk_id();
  return special;
}

// Makes AutoTokenizer take tokenizer.model as it is: no BOS is added, since documents are separated
// by EOS in training, and nothing is put before the text.
std::string tokenizer_config(const SpecialTokens& special, std::int64_t max_length) {
  nlohmann::ordered_json json;
  json["tokenizer_class"] = "LlamaTokenizer";
  json["add_bos_token"] = false;
  json["add_eos_token"] = false;
  json["add_prefix_space"] = false;
  json["legacy"] = false;
  json["clean_up_tokenization_spaces"] = false;
  json["model_max_length"] = max_length;
  const auto token = [](std::int64_t id, const char* piece) {
    return id >= 0 ? nlohmann::ordered_json(piece) : nlohmann::ordered_json(nullptr);
  };
  json["bos_token"] = token(special.bos, "<s>");
  json["eos_token"] = token(special.eos, "</s>");
  json["unk_token"] = token(special.unk, "<unk>");
  json["pad_token"] = nullptr;
  return json.dump(2) + "\n";
}

// Reads a stored weight as fp32.
void read_f32(const CheckpointReader& checkpoint, const StoredTensor& stored, float* destination) {
  if (stored.dtype == DType::f32) return checkpoint.read(stored, destination);
  if (stored.dtype != DType::bf16)
    throw std::runtime_error(fmt::format("{}: {} has dtype {}, which cannot be exported",
                                         checkpoint.path(), stored.name, name_of(stored.dtype)));
  std::vector<std::uint16_t> bits(stored.bytes / sizeof(std::uint16_t));
  checkpoint.read(stored, bits.data());
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const std::uint32_t wide = static_cast<std::uint32_t>(bits[i]) << 16;
    std::memcpy(&destination[i], &wide, sizeof(wide));
  }
}

std::vector<SafetensorsSource> sources_of(const CheckpointReader& checkpoint) {
  std::vector<SafetensorsSource> sources;
  for (const WeightShape& weight : huggingface_weights(checkpoint.metadata().model)) {
    const StoredTensor& stored = checkpoint.at("weights/" + weight.name);
    if (!(stored.shape == weight.shape))
      throw std::runtime_error(fmt::format("{}: {} is {}, but its model config wants {}",
                                           checkpoint.path(), stored.name, stored.shape.to_string(),
                                           weight.shape.to_string()));
    sources.push_back({weight.name, weight.shape, [&checkpoint, &stored](float* destination) {
                         read_f32(checkpoint, stored, destination);
                       }});
  }
  return sources;
}

void prepare_directory(const ExportArguments& arguments) {
  std::error_code error;
  const bool empty = !std::filesystem::exists(arguments.out, error) ||
                     std::filesystem::is_empty(arguments.out, error);
  if (!empty && !arguments.force)
    throw std::invalid_argument(
        fmt::format("{}: exists and is not empty\nhint: choose another directory, or give --force "
                    "to replace the files of an earlier export",
                    arguments.out));
  create_directories(posix_file_system(), arguments.out);
}

void warn_of_what_others_do_not_know(const LlamaConfig& model) {
  if (!model.moc || model.moc->keep == model.intermediate_size) return;
  fmt::print(stderr,
             "chaski: warning: other programs run this model dense: they do not know "
             "mixture_of_channels of its config.json, by which a token uses {} of {} channels\n",
             model.moc->keep, model.intermediate_size);
}

void warn_of_what_others_refuse(const LlamaConfig& model) {
  if (model.hidden_size % model.num_heads == 0) return;
  fmt::print(
      stderr,
      "chaski: warning: newer versions of transformers refuse this model: its hidden_size {} "
      "is no multiple of its num_heads {}\n",
      model.hidden_size, model.num_heads);
}

void run_export(const ExportArguments& arguments) {
  const CheckpointReader checkpoint(arguments.checkpoint, Verification::sizes);
  const CheckpointMetadata& metadata = checkpoint.metadata();
  const std::vector<SafetensorsSource> sources = sources_of(checkpoint);
  prepare_directory(arguments);
  SafetensorsOptions options;
  options.bf16 = arguments.dtype == "bf16";
  options.max_shard_bytes = arguments.max_shard_bytes;
  std::vector<std::string> names = write_safetensors(arguments.out, sources, options);
  const auto write = [&](const std::string& name, const std::string& text) {
    write_text(arguments.out, name, text);
    names.push_back(name);
  };
  SpecialTokens special;
  if (!metadata.tokenizer_model.empty()) {
    special = special_tokens_of(*tokenizer_of(checkpoint));
    write("tokenizer.model", metadata.tokenizer_model);
    write("tokenizer_config.json",
          tokenizer_config(special, metadata.model.max_position_embeddings));
  }
  write("generation_config.json", huggingface_generation_config(special));
  write("config.json",
        huggingface_config(metadata.model, special, options.bf16 ? "bfloat16" : "float32"));
  warn_of_what_others_refuse(metadata.model);
  warn_of_what_others_do_not_know(metadata.model);
  fmt::print("checkpoint  {} (step {})\nexported    {}: {}\n", checkpoint.path(), metadata.step,
             arguments.out, fmt::join(names, ", "));
}

}  // namespace

void register_export_command(CLI::App& app) {
  auto arguments = std::make_shared<ExportArguments>();
  CLI::App* command =
      app.add_subcommand("export", "Write a checkpoint's model as Hugging Face safetensors");
  command->add_option("--checkpoint", arguments->checkpoint, "Checkpoint or run directory")
      ->required()
      ->type_name("PATH");
  command->add_option("--out", arguments->out, "Directory to write")->required()->type_name("DIR");
  allow_only(command->add_option("--dtype", arguments->dtype, "Of the weights in the files"),
             {"fp32", "bf16"})
      ->capture_default_str();
  command
      ->add_option(
          "--max-shard-bytes", arguments->max_shard_bytes,
          "Split the weights into files of at most so many bytes (\"500 MB\"); 0: one file")
      ->transform(CLI::Validator(to_bytes, ""))
      ->type_name("SIZE")
      ->capture_default_str();
  command->add_flag("--force", arguments->force, "Write into a directory that is not empty");
  command->callback([arguments] { run_export(*arguments); });
}

}  // namespace chaski
