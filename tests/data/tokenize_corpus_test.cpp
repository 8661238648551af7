#include "data/tokenize_corpus.h"

#include <algorithm>
#include <chrono>
#include <gmock/gmock.h>
#include <set>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <thread>

#include "data/split.h"
#include "data/token_file.h"
#include "tests/data/fixtures.h"

namespace chaski {
namespace {

using namespace chaski::testing;
using ::testing::HasSubstr;

class TokenizeCorpusTest : public ::testing::Test {
 protected:
  TokenizeReport tokenize(const std::vector<std::string>& paths, TokenizeOptions options = {}) {
    if (options.out.empty()) options.out = folder_.path("out.h5");
    options.overwrite = true;
    return tokenize_corpus(find_corpus_files(paths), small_tokenizer(), options);
  }

  // The texts of a part's documents. A document cut by a block has no EOS.
  std::vector<std::string> documents(const std::string& path, Part part) {
    const auto file = TokenFile::open(path);
    const TokenPart& tokens = file->part(part);
    tokens.verify_checksum();
    std::vector<std::string> texts;
    for (std::uint64_t i = 0; i < tokens.num_documents(); ++i) {
      const std::uint64_t begin = tokens.document_offset(i), end = tokens.document_offset(i + 1);
      std::vector<std::int32_t> ids(end - begin);
      tokens.read(begin, ids.size(), ids.data());
      texts.push_back(small_tokenizer()->decode(ids));
    }
    return texts;
  }

  std::string many_documents(int count) {
    std::string text;
    std::mt19937 generator(4);
    for (int i = 0; i < count; ++i) text += made_up_text(20 + generator() % 400, i) + "x\n\n";
    return text;
  }

  TemporaryFolder folder_;
};

TEST_F(TokenizeCorpusTest, EveryDocumentIsThereWithItsEos) {
  const auto path = folder_.write("a.txt", many_documents(300));
  CorpusReader reader(find_corpus_files({path}), {});
  const auto expected = read_documents(reader, 1 << 20);
  const TokenizeReport report = tokenize({path});
  EXPECT_EQ(documents(folder_.path("out.h5"), Part::train), expected);
  const auto file = TokenFile::open(folder_.path("out.h5"));
  const TokenPart& train = file->part(Part::train);
  EXPECT_EQ(train.num_tokens(), report.tokens);
  EXPECT_EQ(train.num_documents(), expected.size());
  EXPECT_EQ(train.num_bytes(), reader.counts().text_bytes);
  EXPECT_EQ(file->header().tokenizer_fingerprint, small_tokenizer()->fingerprint());
  EXPECT_EQ(file->header().sources.at(0).path, path);
  std::vector<std::int32_t> ids(train.num_tokens());
  train.read(0, ids.size(), ids.data());
  std::set<std::uint64_t> ends;
  for (std::uint64_t i = 1; i <= train.num_documents(); ++i) ends.insert(train.document_offset(i));
  for (std::uint64_t i = 0; i < ids.size(); ++i) {
    ASSERT_EQ(ids[i] == 2, ends.contains(i + 1)) << "EOS at the end of documents, only there";
  }
}

TEST_F(TokenizeCorpusTest, ThreadsAndBlocksDoNotChangeTheFile) {
  const auto path = folder_.write("a.txt", many_documents(2000) + made_up_text(300000, 1));
  TokenizeOptions options;
  options.validation = 0.1;
  std::string expected;
  for (const int threads : {1, 2, 5}) {
    for (const std::size_t block : {std::size_t{3000}, std::size_t{512 * 1024}}) {
      options.threads = threads;
      options.corpus.block_bytes = block;
      tokenize({path}, options);
      const std::string content = read_file(folder_.path("out.h5"));
      if (expected.empty()) expected = content;
      EXPECT_TRUE(content == expected) << threads << " threads, blocks of " << block;
    }
  }
}

TEST_F(TokenizeCorpusTest, SplitByDocument) {
  const auto path = folder_.write("a.txt", many_documents(3000));
  const auto all = read_documents({path});
  TokenizeOptions options;
  options.validation = 0.05;
  const TokenizeReport report = tokenize({path}, options);
  EXPECT_THAT(report.split, HasSubstr("by document"));
  std::vector<std::string> train, validation;
  for (std::size_t i = 0; i < all.size(); ++i) {
    (in_validation(i, 0.05, 0) ? validation : train).push_back(all[i]);
  }
  EXPECT_EQ(documents(folder_.path("out.h5"), Part::train), train);
  EXPECT_EQ(documents(folder_.path("out.h5"), Part::validation), validation);
  EXPECT_NEAR(static_cast<double>(validation.size()) / static_cast<double>(all.size()), 0.05, 0.02);
  EXPECT_EQ(report.train.num_bytes + report.validation.num_bytes, report.corpus.text_bytes);
  EXPECT_EQ(report.train.num_tokens + report.validation.num_tokens, report.tokens);

  options.seed = 1;
  tokenize({path}, options);
  EXPECT_NE(documents(folder_.path("out.h5"), Part::validation), validation);
}

TEST_F(TokenizeCorpusTest, OneHugeDocumentIsCutAtALine) {
  const std::string text = made_up_text(400000, 1);
  const auto path = folder_.write("a.txt", text);
  TokenizeOptions options;
  options.validation = 0.01;
  const TokenizeReport report = tokenize({path}, options);
  EXPECT_THAT(report.split, HasSubstr("block"));
  const auto train = documents(folder_.path("out.h5"), Part::train);
  const auto validation = documents(folder_.path("out.h5"), Part::validation);
  ASSERT_EQ(train.size(), 1u);
  ASSERT_EQ(validation.size(), 1u);
  EXPECT_EQ(train[0] + validation[0], text);
  EXPECT_TRUE(train[0].ends_with('\n'));
  EXPECT_EQ(report.train.num_bytes, train[0].size());
  EXPECT_EQ(report.validation.num_bytes, validation[0].size());
  EXPECT_NEAR(static_cast<double>(report.validation.num_tokens) / report.tokens, 0.01, 0.003);
}

TEST_F(TokenizeCorpusTest, NoPartIsEverEmpty) {
  const std::vector<std::string> corpora = {"a",
                                            "ka ri",
                                            "a\n\nb",
                                            "a\n\nb\n\nc",
                                            "x\n\n" + made_up_text(5000, 1),
                                            made_up_text(5000, 1) + "\n\nx",
                                            many_documents(7),
                                            many_documents(60)};
  for (const std::string& corpus : corpora) {
    const auto path = folder_.write("a.txt", corpus);
    std::string together;
    for (const std::string& document : read_documents({path})) together += document;
    for (const double fraction : {1e-9, 0.01, 0.1, 0.5, 0.9, 0.999}) {
      TokenizeOptions options;
      options.validation = fraction;
      const TokenizeReport report = tokenize({path}, options);
      EXPECT_GE(report.train.num_tokens, 1u);
      EXPECT_GE(report.validation.num_tokens, 1u);
      EXPECT_EQ(report.train.num_tokens + report.validation.num_tokens, report.tokens);
      EXPECT_EQ(report.train.num_bytes + report.validation.num_bytes, report.corpus.text_bytes);
      const auto train = documents(folder_.path("out.h5"), Part::train);
      const auto validation = documents(folder_.path("out.h5"), Part::validation);
      EXPECT_EQ(train.size(), report.train.num_documents);
      if (report.split.starts_with("block")) {
        std::string joined;
        for (const std::string& text : train) joined += text;
        for (const std::string& text : validation) joined += text;
        EXPECT_EQ(joined, together);
      }
    }
  }
}

TEST_F(TokenizeCorpusTest, BadInputLeavesNothingBehind) {
  const auto good = folder_.write("in/a.txt", many_documents(200));
  const auto bad = folder_.write("in/b.txt", "caf\xE9");
  const auto cut = folder_.write("in/c.txt.gz", gzip(many_documents(200)).substr(0, 9000));
  fs::create_directory(folder_.path("out"));
  TokenizeOptions options;
  options.out = folder_.path("out/tokens.h5");
  for (const auto& path : {bad, cut}) {
    EXPECT_THAT(message_of<std::runtime_error>([&] {
                  tokenize({good, path}, options);
                }),
                HasSubstr(path));
  }
  const auto empty = folder_.write("in/d.txt", "\n \n");
  EXPECT_THAT(message_of<std::invalid_argument>([&] { tokenize({empty}, options); }),
              HasSubstr("the corpus holds no text"));
  options.validation = 1.0;
  EXPECT_THAT(message_of<std::invalid_argument>([&] { tokenize({good}, options); }),
              HasSubstr("must lie in [0, 1)"));
  options.validation = 0.0;
  options.threads = -1;
  EXPECT_THROW(tokenize({good}, options), std::invalid_argument);
  EXPECT_TRUE(fs::is_empty(folder_.path("out")));
}

TEST_F(TokenizeCorpusTest, KilledHalfWayNothingIsThereAndARerunWorks) {
  const auto path = folder_.write("in/a.txt", made_up_text(30 << 20, 1));
  fs::create_directory(folder_.path("out"));
  TokenizeOptions options;
  options.out = folder_.path("out/tokens.h5");
  options.threads = 1;
  const auto files = find_corpus_files({path});
  const auto tokenizer = small_tokenizer();
  int running[2];
  ASSERT_EQ(::pipe(running), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    bool told = false;
    tokenize_corpus(files, tokenizer, options, [&](const TokenizeProgress&) {
      if (!std::exchange(told, true)) (void)!::write(running[1], "x", 1);
      // Slow enough to be killed before it is through.
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    });
    ::_exit(0);
  }
  char byte;
  ASSERT_EQ(::read(running[0], &byte, 1), 1);
  ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status)) << "it was through too early";
  EXPECT_FALSE(fs::exists(options.out));
  ::close(running[0]);
  ::close(running[1]);

  tokenize_corpus(files, tokenizer, options);
  EXPECT_EQ(TokenFile::open(options.out)->part(Part::train).num_bytes(), 30u << 20);
  std::vector<std::string> left;
  for (const auto& entry : fs::directory_iterator(folder_.path("out"))) {
    left.push_back(entry.path().filename().string());
  }
  EXPECT_THAT(left, ::testing::ElementsAre("tokens.h5")) << "the dead process's files are gone";
}

// Peak memory of a child that tokenizes `path`, in bytes.
std::uint64_t peak_memory_of(const std::string& path, TokenizeOptions options) {
  const auto tokenizer = small_tokenizer();
  const auto files = find_corpus_files({path});
  const pid_t child = ::fork();
  if (child == 0) {
    tokenize_corpus(files, tokenizer, options);
    ::_exit(0);
  }
  int status = 0;
  rusage usage{};
  ::wait4(child, &status, 0, &usage);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

TEST_F(TokenizeCorpusTest, MemoryDoesNotGrowWithTheCorpus) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer keeps freed memory";
#endif
  TokenizeOptions options;
  options.out = folder_.path("out.h5");
  options.overwrite = true;
  options.threads = 2;
  options.validation = 0.01;
  // Written in pieces: what this process holds, its children hold too.
  const auto write = [&](const std::string& name, const std::string& before,
                         const std::string& piece, int pieces, const std::string& behind) {
    std::ofstream file(folder_.path(name), std::ios::binary);
    file << before;
    for (int i = 0; i < pieces; ++i) file << piece;
    file << behind;
    return folder_.path(name);
  };
  std::string words = made_up_text(1 << 20, 3);
  std::replace(words.begin(), words.end(), '\n', ' ');
  // A single line of 64 MiB as text, as JSON, and without a single space; against one of 4 MiB.
  const std::uint64_t small = peak_memory_of(write("small.txt", "", words, 4, ""), options);
  const std::string inputs[] = {write("a.txt", "", words, 64, ""),
                                write("b.jsonl", "{\"text\": \"", words, 64, "\"}"),
                                write("c.txt", "", std::string(1 << 20, 'k'), 64, "")};
  for (const std::string& path : inputs) {
    const std::uint64_t peak = peak_memory_of(path, options);
    EXPECT_LT(peak, small + (48u << 20)) << path;
    const auto file = TokenFile::open(options.out);
    EXPECT_EQ(file->part(Part::train).num_bytes() + file->part(Part::validation).num_bytes(),
              64u << 20);
  }
}

}  // namespace
}  // namespace chaski
