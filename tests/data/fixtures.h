#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <gtest/gtest.h>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <unistd.h>
#include <vector>
#include <zlib.h>
#include <zstd.h>

#include "data/corpus_reader.h"
#include "data/tokenizer.h"
#include "data/tokenizer_training.h"

namespace chaski::testing {

namespace fs = std::filesystem;

// A folder of its own for a test, removed with it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "chaski-data-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string path() const { return folder_.string(); }

  std::string write(const std::string& name, std::string_view content) const {
    fs::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name, std::ios::binary) << content;
    return path(name);
  }

 private:
  fs::path folder_;
};

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

inline std::string gzip(std::string_view text) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string packed(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  deflate(&stream, Z_FINISH);
  packed.resize(packed.size() - stream.avail_out);
  deflateEnd(&stream);
  return packed;
}

inline std::string zstd(std::string_view text) {
  std::string packed(ZSTD_compressBound(text.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), text.data(), text.size(), 3));
  return packed;
}

// The documents of a corpus, put together from the reader's blocks.
inline std::vector<std::string> read_documents(CorpusReader& reader, std::size_t most_block_bytes) {
  std::vector<std::string> documents;
  std::string unfinished;
  TextBlock block;
  while (reader.next(block)) {
    EXPECT_LE(block.text.size(), most_block_bytes);
    std::size_t begin = 0;
    for (const std::size_t end : block.document_ends) {
      EXPECT_GE(end, begin);
      documents.push_back(unfinished + block.text.substr(begin, end - begin));
      unfinished.clear();
      begin = end;
    }
    unfinished += block.text.substr(begin);
  }
  EXPECT_EQ(unfinished, "");
  return documents;
}

inline std::vector<std::string> read_documents(const std::vector<std::string>& paths,
                                               CorpusOptions options = {}) {
  CorpusReader reader(find_corpus_files(paths), options);
  return read_documents(reader, options.block_bytes);
}

// English-like sentences out of made-up words with Zipf's frequencies; the same for equal seeds.
inline std::string made_up_text(std::size_t bytes, unsigned seed) {
  std::mt19937 generator(seed);
  const auto word = [](unsigned number) {
    static const char* const kSyllables[] = {"ka", "ri",  "to", "men", "sol", "ab",  "est", "ing",
                                             "un", "pre", "lo", "vi",  "cha", "ski", "qui", "pu"};
    std::string text;
    for (number += 1; number > 0; number /= 16) text += kSyllables[number % 16];
    return text;
  };
  std::string text;
  while (text.size() < bytes) {
    const double u = std::uniform_real_distribution<>(0.0, 1.0)(generator);
    text += word(static_cast<unsigned>(std::pow(3000.0, u)));
    const unsigned end = generator() % 12;
    text += end == 0 ? ".\n" : end == 1 ? ", " : end == 2 ? "  " : " ";
  }
  text.resize(bytes);
  return text;
}

inline std::shared_ptr<const Tokenizer> train_on(const std::string& text, std::int32_t vocab_size,
                                                 TokenizerType type = TokenizerType::bpe) {
  const TemporaryFolder folder;
  CorpusReader reader(find_corpus_files({folder.write("corpus.txt", text)}), {});
  TokenizerTraining training;
  training.type = type;
  training.vocab_size = vocab_size;
  training.threads = 2;
  TokenizerTrainingReport report;
  return train_tokenizer(reader, training, report);
}

// A small tokenizer for made_up_text(), trained once.
inline std::shared_ptr<const Tokenizer> small_tokenizer() {
  static const auto tokenizer = train_on(made_up_text(200000, 1), 600);
  return tokenizer;
}

// What the exception of `work` says; empty when there is none.
template <class Exception>
std::string message_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Exception& error) {
    return error.what();
  }
  ADD_FAILURE() << "no exception";
  return "";
}

}  // namespace chaski::testing
