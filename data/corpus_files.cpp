#include "data/corpus_files.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fmt/format.h>
#include <glob.h>
#include <optional>
#include <set>
#include <stdexcept>
#include <unistd.h>

namespace chaski {
namespace {

namespace fs = std::filesystem;

std::optional<CorpusFormat> format_of(std::string name) {
  for (const char* suffix : {".gz", ".zst"}) {
    if (name.ends_with(suffix)) {
      name.resize(name.size() - std::strlen(suffix));
      break;
    }
  }
  if (name.ends_with(".txt")) return CorpusFormat::text;
  if (name.ends_with(".jsonl")) return CorpusFormat::json_lines;
  return std::nullopt;
}

std::vector<std::string> files_of_folder(const std::string& folder) {
  std::vector<std::string> found;
  std::error_code error;
  fs::recursive_directory_iterator it(folder, error);
  for (; !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code kind_error;
    if (name.starts_with('.')) {
      if (it->is_directory(kind_error)) it.disable_recursion_pending();
    } else if (format_of(name) && it->is_regular_file(kind_error)) {
      found.push_back(it->path().string());
    }
  }
  if (error) {
    throw std::runtime_error(fmt::format(
        "{}: the folder cannot be read: {}\nhint: check the permissions of it and what is in it",
        folder, error.message()));
  }
  if (found.empty()) {
    throw std::invalid_argument(
        fmt::format("{}: the folder holds no .txt or .jsonl file (also .gz, .zst)", folder));
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<std::string> matches_of_glob(const std::string& pattern) {
  glob_t matches{};
  const int result = ::glob(pattern.c_str(), GLOB_ERR, nullptr, &matches);
  std::vector<std::string> found(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  ::globfree(&matches);
  if (result == GLOB_NOMATCH) {
    throw std::invalid_argument(fmt::format("{}: no file matches", pattern));
  }
  if (result != 0) {
    throw std::runtime_error(fmt::format(
        "{}: a folder on the way cannot be read\nhint: check the permissions of the folders",
        pattern));
  }
  std::sort(found.begin(), found.end());
  return found;
}

CorpusFile corpus_file(const std::string& path) {
  const auto format = format_of(path);
  if (!format) {
    throw std::invalid_argument(
        fmt::format("{}: is neither .txt nor .jsonl (nor one of these with .gz or .zst)\n"
                    "hint: give the file the suffix of what it holds",
                    path));
  }
  if (::access(path.c_str(), R_OK) != 0) {
    throw std::runtime_error(
        fmt::format("{}: cannot be read: {}\nhint: check the permissions of the file", path,
                    std::strerror(errno)));
  }
  std::error_code error;
  const std::uint64_t bytes = fs::file_size(path, error);
  // A pipe or device has no size; its progress is then unknown.
  return {path, *format, error ? 0 : bytes};
}

}  // namespace

std::vector<CorpusFile> find_corpus_files(const std::vector<std::string>& arguments) {
  std::vector<CorpusFile> files;
  std::set<std::string> seen;
  for (const std::string& argument : arguments) {
    std::error_code error;
    const fs::file_status status = fs::status(argument, error);
    std::vector<std::string> paths;
    if (fs::is_directory(status)) {
      paths = files_of_folder(argument);
    } else if (fs::exists(status)) {
      paths = {argument};
    } else if (error && error != std::errc::no_such_file_or_directory) {
      throw std::runtime_error(
          fmt::format("{}: cannot be read: {}\nhint: check the permissions of its folders",
                      argument, error.message()));
    } else if (argument.find_first_of("*?[") != std::string::npos) {
      paths = matches_of_glob(argument);
    } else {
      throw std::invalid_argument(fmt::format("{}: no such file", argument));
    }
    for (const std::string& path : paths) {
      if (!seen.insert(fs::weakly_canonical(path, error).string()).second) {
        throw std::invalid_argument(fmt::format("{}: is named twice in the corpus", path));
      }
      if (fs::is_directory(path, error)) {
        throw std::invalid_argument(fmt::format(
            "{}: {} is a folder\nhint: name the folder itself, or files", argument, path));
      }
      files.push_back(corpus_file(path));
    }
  }
  if (files.empty()) throw std::invalid_argument("the corpus names no file");
  return files;
}

}  // namespace chaski
