#include "model/safetensors_format.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <stdexcept>
#include <string_view>

#include "model/bounded_json.h"

namespace chaski {
namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void fail(const std::string& file, const std::string& reason) {
  throw std::runtime_error(fmt::format("{}: {}", file, reason));
}

std::uint64_t dtype_bytes(const std::string& file, const std::string& dtype) {
  struct Known {
    std::string_view name;
    std::uint64_t bytes;
  };
  constexpr std::array<Known, 15> kKnown{{{"BOOL", 1},
                                          {"U8", 1},
                                          {"I8", 1},
                                          {"F8_E4M3", 1},
                                          {"F8_E5M2", 1},
                                          {"I16", 2},
                                          {"U16", 2},
                                          {"F16", 2},
                                          {"BF16", 2},
                                          {"I32", 4},
                                          {"U32", 4},
                                          {"F32", 4},
                                          {"F64", 8},
                                          {"I64", 8},
                                          {"U64", 8}}};
  for (const Known& known : kKnown)
    if (known.name == dtype) return known.bytes;
  fail(file, fmt::format("has the unknown dtype '{:.16}'", dtype));
}

// Names appear in messages of one line.
bool is_usable_name(const std::string& name) {
  return !name.empty() && name.size() <= 1024 && std::all_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) >= 0x20 && c != 0x7f;
  });
}

std::uint64_t get_unsigned(const std::string& file, const Json& value) {
  if (!value.is_number_unsigned()) fail(file, "has a size or offset that is no whole number");
  return value.get<std::uint64_t>();
}

// Bytes of the elements, checked against overflow by what the file has.
std::uint64_t size_of_elements(const std::string& file, const SafetensorsEntry& entry,
                               std::uint64_t data_bytes) {
  std::uint64_t bytes = dtype_bytes(file, entry.dtype);
  for (const std::int64_t dim : entry.shape) {
    const auto d = static_cast<std::uint64_t>(dim);
    if (d != 0 && bytes > data_bytes / d) fail(file, entry.name + " is larger than the file");
    bytes *= d;
  }
  return bytes;
}

SafetensorsEntry parse_entry(const std::string& file, const std::string& name, const Json& json,
                             std::uint64_t data_bytes) {
  if (!is_usable_name(name)) fail(file, "has a tensor with an unusable name");
  SafetensorsEntry entry;
  entry.name = name;
  entry.file = file;
  if (!json.is_object() || !json.contains("dtype") || !json["dtype"].is_string() ||
      !json.contains("shape") || !json["shape"].is_array() || !json.contains("data_offsets") ||
      !json["data_offsets"].is_array() || json["data_offsets"].size() != 2)
    fail(file, fmt::format("describes {} in a malformed way", name));
  entry.dtype = json["dtype"].get<std::string>();
  for (const Json& dim : json["shape"]) {
    const std::uint64_t value = get_unsigned(file, dim);
    if (value > data_bytes) fail(file, name + " is larger than the file");
    entry.shape.push_back(static_cast<std::int64_t>(value));
  }
  entry.offset = get_unsigned(file, json["data_offsets"][0]);
  const std::uint64_t end = get_unsigned(file, json["data_offsets"][1]);
  if (entry.offset > end || end > data_bytes) fail(file, name + " reaches beyond the file's end");
  entry.bytes = end - entry.offset;
  if (entry.bytes != size_of_elements(file, entry, data_bytes))
    fail(file,
         fmt::format("gives {} {} bytes, which is not what its shape needs", name, entry.bytes));
  return entry;
}

void check_no_gaps(const std::string& file, const std::vector<SafetensorsEntry>& entries,
                   std::uint64_t data_bytes) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  for (const SafetensorsEntry& entry : entries)
    ranges.emplace_back(entry.offset, entry.offset + entry.bytes);
  std::sort(ranges.begin(), ranges.end());
  std::uint64_t position = 0;
  for (const auto& [begin, end] : ranges) {
    if (begin != position) fail(file, "has tensors that overlap or leave a gap");
    position = end;
  }
  if (position != data_bytes)
    fail(file, fmt::format("has {} bytes of tensors instead of {}", data_bytes, position));
}

}  // namespace

std::vector<SafetensorsEntry> parse_safetensors_header(const std::string& header,
                                                       const std::string& file,
                                                       std::uint64_t data_bytes) {
  const Json json = parse_bounded_json(header, file);
  if (!json.is_object()) fail(file, "its header is no JSON object");
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, value] : json.items())
    if (name != "__metadata__") entries.push_back(parse_entry(file, name, value, data_bytes));
  check_no_gaps(file, entries, data_bytes);
  const std::uint64_t begin = sizeof(std::uint64_t) + header.size();
  for (SafetensorsEntry& entry : entries) entry.offset += begin;
  return entries;
}

}  // namespace chaski
