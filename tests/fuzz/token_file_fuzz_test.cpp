#include <algorithm>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include "data/token_file.h"
#include "data/token_file_writer.h"
#include "tests/fault/checkpoint/mutation.h"
#include "tests/fault/checkpoint/temporary_directory.h"
#include "tests/fuzz/fuzz_files.h"
#include "tests/fuzz/guarded_read.h"
#include "tests/fuzz/hdf5_vandal.h"

namespace chaski {
namespace {

class TokenFileFuzz : public testing::Test {
 protected:
  TokenFileFuzz() {
    TokenFileHeader header;
    header.creator = "fuzz";
    header.tokenizer_model = std::string(300, 'm');  // only its checksum is looked at
    const XXH128_hash_t hash =
        XXH3_128bits(header.tokenizer_model.data(), header.tokenizer_model.size());
    header.tokenizer_fingerprint = fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
    header.vocab_size = 600;
    header.eos_id = 2;
    header.split = "by hand";
    header.sources = {{"a b.txt", 123}, {"c\xFF.jsonl", 0}};
    TokenFileWriter writer(path_, true);
    writer.write_header(header);
    write_part(writer, Part::train, 100, {10, 11, 25, 100});
    write_part(writer, Part::validation, 5, {5});
    writer.commit();
    original_ = read_file(path_);
  }

  static void write_part(TokenFileWriter& writer, Part part, std::uint16_t tokens,
                         const std::vector<std::uint64_t>& ends) {
    writer.begin_part(part, {tokens, ends.size(), 3ULL * tokens});
    for (std::uint16_t id = 0; id < tokens; ++id)
      writer.add_tokens(std::as_bytes(std::span(&id, 1)));
    for (const std::uint64_t end : ends) writer.add_document_end(end);
    writer.end_part();
  }

  // Does with a file all that the program does.
  void use() const {
    TokenFile::is_token_file(path_);
    const auto file = TokenFile::open(path_);
    for (const Part part : {Part::train, Part::validation}) {
      if (!file->has_part(part)) continue;
      const TokenPart& tokens = file->part(part);
      std::vector<std::int32_t> ids(16);
      const std::uint64_t count = std::min<std::uint64_t>(16, tokens.num_tokens());
      tokens.read(tokens.num_tokens() - count, count, ids.data());
      tokens.document_of(tokens.num_tokens() / 2);
      tokens.verify_checksum();
    }
  }

  TemporaryDirectory directory_;
  std::string path_ = directory_.path() + "/tokens.h5";
  std::string original_;
};

TEST_F(TokenFileFuzz, Bytes) {
  ASSERT_NO_THROW(use());
  Mutator mutator(fuzz_seed());
  const std::vector<char> original(original_.begin(), original_.end());
  int refused = 0;
  for (int i = 0; i < scaled(4000); ++i) {
    const std::vector<char> mutant = mutator.mutate(original);
    const std::string contents(mutant.begin(), mutant.end());
    write_file(path_, contents);
    if (!read_guarded("token-file", contents, [&] { use(); })) ++refused;
  }
  EXPECT_GT(refused, scaled(1000));
}

TEST_F(TokenFileFuzz, Structure) {
  Hdf5Vandal vandal(fuzz_seed());
  int refused = 0;
  for (int i = 0; i < scaled(1500); ++i) {
    write_file(path_, original_);
    vandal.change(path_);
    if (!read_guarded("token-file-structure", read_file(path_), [&] { use(); })) ++refused;
  }
  EXPECT_GT(refused, scaled(500));
}

}  // namespace
}  // namespace chaski
