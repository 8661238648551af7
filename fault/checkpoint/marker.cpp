#include "fault/checkpoint/marker.h"

#include <algorithm>
#include <charconv>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <xxhash.h>

namespace chaski {
namespace {

constexpr std::uint64_t kMaxMarkerBytes = std::uint64_t{4} << 20;

std::string checksummed(const std::string& line) {
  return fmt::format("{}\nxxh3-64 {:016x}\n", line, XXH3_64bits(line.data(), line.size()));
}

// The first line, after the second has been found to be its checksum.
std::string checked_line(const std::string& text) {
  const std::size_t end = text.find('\n');
  const std::string line = text.substr(0, end);
  if (end == std::string::npos || text != checksummed(line))
    throw std::runtime_error("is damaged (checksum)");
  return line;
}

nlohmann::json to_json(const ShardInfo& info) {
  return {{"file", info.file},
          {"bytes", info.bytes},
          {"xxh3_64", fmt::format("{:016x}", info.checksum)}};
}

ShardInfo shard_from_json(const nlohmann::json& json) {
  ShardInfo info;
  info.file = json.at("file").get<std::string>();
  info.bytes = json.at("bytes").get<std::uint64_t>();
  const auto checksum = json.at("xxh3_64").get<std::string>();
  const char* end = checksum.data() + checksum.size();
  if (std::from_chars(checksum.data(), end, info.checksum, 16).ptr != end)
    throw std::runtime_error("has a malformed checksum");
  return info;
}

CompletionMarker marker_from_json(const nlohmann::json& json) {
  if (json.at("format").get<std::string>() != "chaski checkpoint")
    throw std::runtime_error("is not that of a Chaski checkpoint");
  if (const auto version = json.at("version").get<std::int64_t>(); version != kShardFormatVersion)
    throw std::runtime_error(fmt::format("has format version {}, this program reads version {}",
                                         version, kShardFormatVersion));
  CompletionMarker marker;
  marker.step = json.at("step").get<std::int64_t>();
  marker.generation = json.at("generation").get<std::int64_t>();
  for (const auto& shard : json.at("shards")) marker.shards.push_back(shard_from_json(shard));
  const std::size_t count = marker.shards.size();
  if (count < 1 || count > kMaxShards) throw std::runtime_error("lists no shards");
  for (std::size_t i = 0; i < count; ++i)
    if (marker.shards[i].file != shard_file_name(static_cast<int>(i), static_cast<int>(count)))
      throw std::runtime_error("lists a file that is no shard");
  return marker;
}

}  // namespace

std::string checkpoint_name(std::int64_t step) {
  return fmt::format("step-{:08}", step);
}

std::optional<std::int64_t> step_in_name(const std::string& name, const std::string& suffix) {
  constexpr std::string_view kPrefix = "step-";
  if (name.size() <= kPrefix.size() + suffix.size() || name.size() > 64) return std::nullopt;
  const char* begin = name.data() + kPrefix.size();
  const char* end = name.data() + name.size() - suffix.size();
  std::int64_t step = 0;
  if (std::from_chars(begin, end, step).ptr != end || step < 0) return std::nullopt;
  if (name != checkpoint_name(step) + suffix) return std::nullopt;
  return step;
}

std::string encode_marker(const CompletionMarker& marker) {
  nlohmann::json json = {{"format", "chaski checkpoint"},
                         {"version", kShardFormatVersion},
                         {"step", marker.step},
                         {"generation", marker.generation}};
  for (const ShardInfo& shard : marker.shards) json["shards"].push_back(to_json(shard));
  return checksummed(json.dump());
}

CompletionMarker decode_marker(const std::string& text) {
  try {
    return marker_from_json(nlohmann::json::parse(checked_line(text)));
  } catch (const nlohmann::json::exception&) {
    throw std::runtime_error("is malformed");
  }
}

std::string shard_report_name(int shard, int num_shards) {
  return shard_file_name(shard, num_shards) + ".json";
}

std::string encode_shard_report(const ShardInfo& info) {
  return checksummed(to_json(info).dump());
}

ShardInfo decode_shard_report(const std::string& text) {
  try {
    return shard_from_json(nlohmann::json::parse(checked_line(text)));
  } catch (const nlohmann::json::exception&) {
    throw std::runtime_error("is malformed");
  }
}

CompletionMarker read_marker(FileSystem& files, const std::string& checkpoint) {
  const std::string path = join_path(checkpoint, kMarkerName);
  if (!files.status(path))
    throw std::runtime_error(fmt::format("is incomplete: it has no file {}", kMarkerName));
  const std::string text = read_whole_file(files, path, kMaxMarkerBytes);
  try {
    return decode_marker(text);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(fmt::format("its file {} {}", kMarkerName, error.what()));
  }
}

}  // namespace chaski
