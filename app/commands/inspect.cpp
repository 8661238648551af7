#include <filesystem>
#include <fmt/format.h>
#include <memory>
#include <stdexcept>

#include "app/commands/commands.h"
#include "app/commands/file_description.h"
#include "app/commands/file_kind.h"
#include "app/console/human_format.h"
#include "data/token_file.h"

namespace chaski {
namespace {

using Json = nlohmann::ordered_json;

struct InspectArguments {
  std::string path;
  bool json = false;
  bool verify = false;
  bool tensors = false;
  bool config = false;
};

// Readers take what they do not recognise for a file of another kind; where the file is one of
// theirs, judged by what is left of it, that is damage.
[[noreturn]] void throw_damaged(const InspectArguments& arguments, const FileGuess& guess,
                                const std::string& reason) {
  throw std::runtime_error(fmt::format("{}: looks like {}, but is damaged: {}", arguments.path,
                                       guess.looks_like, reason));
}

Json describe_damageable_checkpoint(const InspectArguments& arguments, const FileGuess& guess) {
  try {
    return describe_checkpoint(arguments.path, arguments.verify);
  } catch (const std::invalid_argument&) {
    throw_damaged(arguments, guess,
                  std::filesystem::is_directory(arguments.path)
                      ? "it has no file COMPLETE: its save was interrupted, or not all was copied"
                      : "no checkpoint is around it; it belongs beside a file COMPLETE, under the "
                        "name that it was written with");
  }
}

Json describe_damageable_token_file(const InspectArguments& arguments, const FileGuess& guess) {
  try {
    return describe_token_file(arguments.path, arguments.verify);
  } catch (const std::invalid_argument&) {
    if (TokenFile::is_token_file(arguments.path)) throw;  // of another version
    throw_damaged(arguments, guess, "its HDF5 structure cannot be read");
  }
}

Json describe(const InspectArguments& arguments) {
  const FileGuess guess = guess_file_kind(arguments.path);
  switch (guess.kind) {
    case FileKind::run:
      return describe_checkpoint(arguments.path, arguments.verify);
    case FileKind::checkpoint:
      return describe_damageable_checkpoint(arguments, guess);
    case FileKind::token_file:
      return describe_damageable_token_file(arguments, guess);
    case FileKind::safetensors:
      return describe_safetensors(arguments.path);
    case FileKind::other:
      break;
  }
  const std::string what = fmt::format(
      "{}: looks like {}; expected a checkpoint, run directory, token file or "
      "safetensors file",
      arguments.path, guess.looks_like);
  if (guess.seems_damaged) throw std::runtime_error(what);
  throw std::invalid_argument(what);
}

// A value as people read it; byte counts are told by their key.
std::string text_of(const std::string& key, const Json& value) {
  if (value.is_number_unsigned() && key.ends_with("bytes"))
    return format_bytes(value.get<std::int64_t>());
  if (key == "verified")
    return value.get<bool>() ? "every byte" : "not checked; --verify reads all";
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return value.dump();
  std::vector<std::string> parts;
  for (const Json& part : value) parts.push_back(text_of(key, part));
  return fmt::format("[{}]", fmt::join(parts, ", "));
}

void print_rows(const std::string& title, const Json& rows) {
  fmt::print("{}:\n", title);
  for (const Json& row : rows) {
    std::vector<std::string> cells;
    for (const auto& [key, value] : row.items()) cells.push_back(text_of(key, value));
    fmt::print("  {}\n", fmt::join(cells, "  "));
  }
}

void print_value(const std::string& key, const Json& value) {
  if (value.is_array() && !value.empty() && value.front().is_object())
    return print_rows(key, value);
  if (!value.is_object()) {
    fmt::print("{:<30} {}\n", key, text_of(key, value));
    return;
  }
  for (const auto& [name, part] : value.items()) print_value(key + "." + name, part);
}

void print_table(const Json& description, const InspectArguments& arguments) {
  for (const auto& [key, value] : description.items()) {
    if (key == "tensors" && !arguments.tensors)
      fmt::print("{:<30} {} (--tensors lists them)\n", key, value.size());
    else if (key == "config" && !arguments.config)
      fmt::print("{:<30} {} bytes (--config prints it)\n", key,
                 value.get_ref<const std::string&>().size());
    else if (key == "config")
      fmt::print("config:\n{}\n", value.get_ref<const std::string&>());
    else
      print_value(key, value);
  }
}

void run_inspect(const InspectArguments& arguments) {
  const Json description = describe(arguments);
  if (arguments.json)
    fmt::print("{}\n", description.dump(2, ' ', false, Json::error_handler_t::replace));
  else
    print_table(description, arguments);
}

}  // namespace

void register_inspect_command(CLI::App& app) {
  auto arguments = std::make_shared<InspectArguments>();
  CLI::App* command = app.add_subcommand(
      "inspect", "Show what a checkpoint, run directory, token file or safetensors file contains");
  command->add_option("PATH", arguments->path, "File or directory")->required();
  command->add_flag("--json", arguments->json, "Print one JSON object");
  command->add_flag("--verify", arguments->verify, "Read every byte and check the checksums");
  command->add_flag("--tensors", arguments->tensors, "List all tensors");
  command->add_flag("--config", arguments->config, "Print the config of a checkpoint's run");
  command->callback([arguments] { run_inspect(*arguments); });
}

}  // namespace chaski
