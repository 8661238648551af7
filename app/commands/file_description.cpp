#include "app/commands/file_description.h"

#include <fmt/format.h>

#include "data/token_file.h"
#include "fault/checkpoint/reader.h"
#include "model/huggingface.h"
#include "model/safetensors.h"

namespace chaski {
namespace {

using Json = nlohmann::ordered_json;

Json json_dims_of(const Shape& shape) {
  Json dims = Json::array();
  for (int i = 0; i < shape.rank(); ++i) dims.push_back(shape[i]);
  return dims;
}

Json model_of(const LlamaConfig& model) {
  Json json{{"hidden_size", model.hidden_size},
            {"intermediate_size", model.intermediate_size},
            {"num_layers", model.num_layers},
            {"num_heads", model.num_heads},
            {"num_kv_heads", model.num_kv_heads},
            {"head_dim", model.head_dim},
            {"vocab_size", model.vocab_size},
            {"max_position_embeddings", model.max_position_embeddings},
            {"rope_theta", model.rope_theta},
            {"rms_norm_eps", model.rms_norm_eps},
            {"tie_embeddings", model.tie_embeddings}};
  json["ffn"] = model.moc ? "moc" : "swiglu";
  if (model.moc) {
    json["moc"] = {{"keep", model.moc->keep},
                   {"pattern", name_of(model.moc->pattern)},
                   {"selection", name_of(model.moc->score)}};
  }
  return json;
}

// All checkpoints beside the one that was found, if `path` is no checkpoint itself.
void add_siblings(Json& json, const std::string& path, const std::string& found) {
  if (posix_file_system().status(join_path(path, "COMPLETE"))) return;
  const FoundCheckpoints siblings = find_checkpoints(parent_directory(found));
  for (const CheckpointListing& listing : siblings.complete)
    json["checkpoints"].push_back(
        {{"path", listing.path}, {"step", listing.step}, {"bytes", listing.bytes}});
  for (const SkippedCheckpoint& skipped : siblings.skipped)
    json["skipped"].push_back({{"path", skipped.path}, {"reason", skipped.reason}});
}

Json tensors_of(const CheckpointReader& checkpoint) {
  Json tensors = Json::array();
  for (const StoredTensor& tensor : checkpoint.tensors())
    tensors.push_back({{"name", tensor.name},
                       {"dtype", name_of(tensor.dtype)},
                       {"shape", json_dims_of(tensor.shape)},
                       {"bytes", tensor.bytes},
                       {"checksum", fmt::format("{:016x}", tensor.checksum)}});
  return tensors;
}

void verify_tensors(const CheckpointReader& checkpoint) {
  std::vector<char> bytes;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    bytes.resize(tensor.bytes);
    checkpoint.read(tensor, bytes.data());
  }
}

Json part_of(const TokenFile& file, Part kind) {
  const TokenPart& part = file.part(kind);
  return {{"tokens", part.num_tokens()},
          {"documents", part.num_documents()},
          {"text_bytes", part.num_bytes()}};
}

}  // namespace

Json describe_checkpoint(const std::string& path, bool verify) {
  const CheckpointReader checkpoint(path, verify ? Verification::checksums : Verification::sizes);
  if (verify) verify_tensors(checkpoint);
  const CheckpointMetadata& metadata = checkpoint.metadata();
  std::uint64_t bytes = 0;
  for (const StoredTensor& tensor : checkpoint.tensors()) bytes += tensor.bytes;
  Json json;
  json["kind"] = "checkpoint";
  json["path"] = checkpoint.path();
  json["verified"] = verify;
  json["step"] = metadata.step;
  json["updates"] = metadata.updates;
  json["tokens_seen"] = metadata.tokens_seen;
  json["seed"] = metadata.seed;
  json["tensor_bytes"] = bytes;
  json["parameters"] = metadata.model.num_parameters();
  json["model"] = model_of(metadata.model);
  json["optimizer"] = metadata.optimizer_name;
  json["precision"] = metadata.precision;
  json["tokenizer"] = {{"fingerprint", metadata.tokenizer_fingerprint},
                       {"model_bytes", metadata.tokenizer_model.size()}};
  json["layout"] = {
      {"replicas", metadata.replicas}, {"stages", metadata.stages}, {"threads", metadata.threads}};
  json["versions"] = metadata.versions;
  json["config"] = metadata.config_toml;
  for (const SkippedCheckpoint& skipped : checkpoint.skipped())
    json["skipped"].push_back({{"path", skipped.path}, {"reason", skipped.reason}});
  json["tensors"] = tensors_of(checkpoint);
  add_siblings(json, path, checkpoint.path());
  return json;
}

Json describe_token_file(const std::string& path, bool verify) {
  const auto file = TokenFile::open(path);
  const TokenFileHeader& header = file->header();
  Json json;
  json["kind"] = "token file";
  json["path"] = path;
  json["verified"] = verify;
  json["creator"] = header.creator;
  json["token_width"] = header.bytes_per_token();
  json["tokenizer"] = {{"fingerprint", header.tokenizer_fingerprint},
                       {"model_bytes", header.tokenizer_model.size()},
                       {"vocab_size", header.vocab_size},
                       {"eos_id", header.eos_id}};
  json["split"] = header.split;
  for (const Part part : {Part::train, Part::validation}) {
    if (!file->has_part(part)) continue;
    if (verify) file->part(part).verify_checksum();
    json[name_of(part)] = part_of(*file, part);
  }
  json["sources"] = Json::array();
  for (const TokenFileHeader::Source& source : header.sources)
    json["sources"].push_back({{"path", source.path}, {"bytes", source.bytes}});
  return json;
}

Json describe_safetensors(const std::string& path) {
  const SafetensorsReader reader(path);
  Json json;
  json["kind"] = "safetensors";
  json["path"] = path;
  std::int64_t elements = 0;
  std::uint64_t bytes = 0;
  Json tensors = Json::array();
  for (const SafetensorsEntry& entry : reader.entries()) {
    elements += entry.num_elements();
    bytes += entry.bytes;
    tensors.push_back({{"name", entry.name},
                       {"dtype", entry.dtype},
                       {"shape", entry.shape},
                       {"bytes", entry.bytes}});
  }
  json["parameters"] = elements;
  json["tensor_bytes"] = bytes;
  const std::string config = join_path(path, "config.json");
  constexpr std::uint64_t kMaxConfigBytes = 1U << 20;
  if (posix_file_system().status(config))
    json["model"] = model_of(parse_huggingface_config(
        read_whole_file(posix_file_system(), config, kMaxConfigBytes), config));
  json["tensors"] = tensors;
  return json;
}

}  // namespace chaski
