#pragma once

#include <string>

namespace chaski {

enum class FileKind { run, checkpoint, token_file, safetensors, other };

// What a path seems to be. A damaged file is still one of its kind.
struct FileGuess {
  FileKind kind = FileKind::other;
  std::string looks_like;      // in words: "a token file", "gzip-compressed data", "an empty file"
  bool seems_damaged = false;  // kind other: too much of it is lost to tell what it was
};

// Judges by name, first and last bytes. Throws std::invalid_argument where nothing is called
// `path`, std::runtime_error where it cannot be read.
FileGuess guess_file_kind(const std::string& path);

}  // namespace chaski
