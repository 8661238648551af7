#include "data/corpus_reader.h"

#include <cstdlib>
#include <gmock/gmock.h>
#include <nlohmann/json.hpp>

#include "tests/data/fixtures.h"

namespace chaski {
namespace {

using namespace chaski::testing;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Documents = std::vector<std::string>;

class CorpusReaderTest : public ::testing::Test {
 protected:
  std::string error_of(const std::vector<std::string>& paths, CorpusOptions options = {}) {
    return message_of<std::runtime_error>([&] { read_documents(paths, options); });
  }
  TemporaryFolder folder_;
};

TEST_F(CorpusReaderTest, BlankLinesSeparateDocuments) {
  const auto path = folder_.write("a.txt", "one\ntwo\n\n \t\r\nthree  \n\n\n\n  four\nfive");
  EXPECT_THAT(read_documents({path}), ElementsAre("one\ntwo", "three  ", "  four\nfive"));
}

TEST_F(CorpusReaderTest, AFileWithoutBlankLinesIsOneDocument) {
  const auto path = folder_.write("a.txt", "one\r\ntwo\tthree\r\n");
  EXPECT_THAT(read_documents({path}), ElementsAre("one\r\ntwo\tthree\r"));
}

TEST_F(CorpusReaderTest, FilesEndDocuments) {
  const auto a = folder_.write("a.txt", "one\n"), b = folder_.write("b.txt", "two");
  EXPECT_THAT(read_documents({b, a}), ElementsAre("two", "one"));
}

TEST_F(CorpusReaderTest, SeparatorExpression) {
  const auto path = folder_.write("a.txt", "== A ==\nfoo\n\nbar\n== B ==\n== C ==\nbaz\n");
  CorpusOptions options;
  options.document_separator = "^== .* ==$";
  EXPECT_THAT(read_documents({path}, options), ElementsAre("foo\n\nbar", "baz"));
  options.document_separator = "";
  EXPECT_THAT(read_documents({path}, options),
              ElementsAre("== A ==\nfoo\n\nbar\n== B ==\n== C ==\nbaz"));
  options.document_separator = "(";
  EXPECT_THAT(message_of<std::invalid_argument>([&] { read_documents({path}, options); }),
              HasSubstr("document separator \"(\""));
}

TEST_F(CorpusReaderTest, EmptyDocumentsAreSkippedAndCounted) {
  const auto path =
      folder_.write("a.jsonl", "{\"text\": \"\"}\n\n{\"text\": \"x\"}\n{\"text\": \" \\n\"}\n");
  CorpusReader reader(find_corpus_files({path}), {});
  EXPECT_THAT(read_documents(reader, 1 << 20), ElementsAre("x"));
  EXPECT_EQ(reader.counts().documents, 1u);
  EXPECT_EQ(reader.counts().empty_documents, 2u);
  EXPECT_EQ(reader.counts().text_bytes, 1u);
}

TEST_F(CorpusReaderTest, EmptyFilesHoldNoDocument) {
  EXPECT_THAT(
      read_documents({folder_.write("a.txt", ""), folder_.write("b.jsonl", "\n"),
                      folder_.write("c.txt.gz", gzip("")), folder_.write("d.txt.zst", zstd(""))}),
      IsEmpty());
}

TEST_F(CorpusReaderTest, CompressedFilesHoldTheSame) {
  const std::string text = made_up_text(700000, 5);
  const Documents expected = read_documents({folder_.write("a.txt", text)});
  EXPECT_EQ(read_documents({folder_.write("a.txt.gz", gzip(text))}), expected);
  EXPECT_EQ(read_documents({folder_.write("a.txt.zst", zstd(text))}), expected);
  const std::string half = text.substr(0, 300000), rest = text.substr(300000);
  EXPECT_EQ(read_documents({folder_.write("b.txt.gz", gzip(half) + gzip(rest))}), expected);
  EXPECT_EQ(read_documents({folder_.write("b.txt.zst", zstd(half) + zstd(rest))}), expected);
}

TEST_F(CorpusReaderTest, TruncatedArchivesAreRefused) {
  const std::string text = made_up_text(300000, 5);
  for (const auto& [suffix, packed] : {std::pair{".gz", gzip(text)}, {".zst", zstd(text)}}) {
    for (const std::size_t size : {std::size_t{0}, std::size_t{5}, packed.size() / 2,
                                   packed.size() - 5, packed.size() - 1}) {
      const auto path = folder_.write(std::string("a.txt") + suffix, packed.substr(0, size));
      const std::string error = error_of({path});
      EXPECT_THAT(error, HasSubstr(path)) << size;
      EXPECT_THAT(error, HasSubstr("truncated")) << size;
      EXPECT_THAT(error, HasSubstr("at byte " + std::to_string(size))) << size;
    }
  }
}

TEST_F(CorpusReaderTest, DamagedArchivesAreRefused) {
  std::string packed = gzip(made_up_text(300000, 5));
  packed[packed.size() / 2] ^= 0x55;
  EXPECT_THAT(error_of({folder_.write("a.txt.gz", packed)}), HasSubstr("damaged gzip data"));
  EXPECT_THAT(error_of({folder_.write("b.txt.gz", gzip("text") + "garbage")}),
              HasSubstr("garbage after its end"));
  EXPECT_THAT(error_of({folder_.write("c.txt.zst", "no zstd")}), HasSubstr("damaged zstd data"));
}

TEST_F(CorpusReaderTest, InvalidUtf8NamesFileAndByte) {
  // A character across the border of two reads must not be taken for an invalid one.
  const std::string good = std::string(65535, 'a') + "\u20ac";
  EXPECT_THAT(read_documents({folder_.write("good.txt", good)}), ElementsAre(good));
  const auto path = folder_.write("bad.txt", good + "caf\xE9 au lait");
  const std::string error = error_of({path});
  EXPECT_THAT(error, HasSubstr(path + ": invalid UTF-8 at byte 65541 (0xE9)"));
  EXPECT_THAT(error, HasSubstr("hint: "));
  EXPECT_THAT(error, HasSubstr("--invalid-utf8 replace"));
}

TEST_F(CorpusReaderTest, InvalidUtf8CanBeReplaced) {
  CorpusOptions options;
  options.invalid_utf8 = InvalidUtf8::replace;
  const auto path =
      folder_.write("a.txt", "caf\xE9 \xF0\x9F\x98 \xED\xA0\x80 \xC0\xAF end\xE2\x82");
  CorpusReader reader(find_corpus_files({path}), options);
  EXPECT_THAT(read_documents(reader, 1 << 20),
              ElementsAre("caf\uFFFD \uFFFD \uFFFD\uFFFD\uFFFD \uFFFD\uFFFD end\uFFFD"));
  EXPECT_EQ(reader.counts().replaced, 8u);
}

TEST_F(CorpusReaderTest, ByteOrderMarkIsNoText) {
  EXPECT_THAT(read_documents({folder_.write("a.txt", "\xEF\xBB\xBFtext"),
                              folder_.write("b.jsonl", "\xEF\xBB\xBF{\"text\": \"x\"}")}),
              ElementsAre("text", "x"));
}

TEST_F(CorpusReaderTest, NulBytesAreKeptOrRefused) {
  const std::string text("a\0b", 3);
  const auto path = folder_.write("a.txt", text);
  const auto json = folder_.write("b.jsonl", "{\"text\": \"x\"}\n{\"text\": \"a\\u0000b\"}");
  EXPECT_THAT(read_documents({path, json}), ElementsAre(text, "x", text));
  CorpusOptions options;
  options.refuse_nul = true;
  EXPECT_THAT(error_of({path}, options), HasSubstr(path + ": a NUL byte at byte 1"));
  EXPECT_THAT(error_of({json}, options), HasSubstr(json + ": line 2 holds a NUL"));
}

TEST_F(CorpusReaderTest, JsonLinesErrorsNameTheLine) {
  const std::string good = "{\"text\": \"x\"}\n";
  const std::pair<const char*, const char*> cases[] = {
      {"{\"body\": \"x\"}", "has no key \"text\""},
      {"{\"text\": 7}", "something else than a string"},
      {"{\"text\": {\"text\": \"x\"}}", "something else than a string"},
      {"{\"text\": \"x\", \"text\": \"y\"}", "twice"},
      {"[\"text\"]", "is not a JSON object"},
      {"\"text\"", "is not a JSON object"},
      {"{\"text\": \"x\"", "is not valid JSON"},
      {"{\"text\": \"x\"} {}", "is not valid JSON"},
      {"{\"text\": \"\\ud800\"}", "surrogate"}};
  for (const auto& [line, message] : cases) {
    const auto path = folder_.write("a.jsonl", good + line + "\n" + good);
    const std::string error = error_of({path});
    EXPECT_THAT(error, HasSubstr(path + ": line 2 ")) << line;
    EXPECT_THAT(error, HasSubstr(message)) << line;
  }
}

TEST_F(CorpusReaderTest, TextKeyIsTheOneAtTheTop) {
  CorpusOptions options;
  options.text_key = "body";
  const auto path = folder_.write(
      "a.jsonl", "{\"meta\": {\"body\": \"no\"}, \"list\": [\"body\", {}], \"body\": \"yes\\n\"}");
  EXPECT_THAT(read_documents({path}, options), ElementsAre("yes\n"));
  options.max_line_bytes = 3;
  EXPECT_THAT(read_documents({path}, options), ElementsAre("yes\n"));
}

// A random JSON line with every kind of escape; its text in `text`.
std::string random_json_line(std::mt19937& generator, std::string& text) {
  static const char* const kCharacters[] = {"a", "\"",     "\\",     "\n",         "\t",
                                            "/", "\u00e9", "\u20ac", "\U0001F600", " ",
                                            "{", "}",      "\u0001", ","};
  const auto random_text = [&](std::size_t size) {
    std::string result;
    while (result.size() < size) result += kCharacters[generator() % std::size(kCharacters)];
    return result;
  };
  text = "x" + random_text(generator() % 200);
  nlohmann::ordered_json object;
  object["a" + random_text(generator() % 9)] = {1, -2.5e3, random_text(9), nullptr, {{"text", 3}}};
  object["text"] = text;
  object["z"] = {{"deep", {{"text", random_text(30)}, {"n", {true, {}}}}}};
  return object.dump(-1, ' ', generator() % 2 == 0);
}

TEST_F(CorpusReaderTest, LargeJsonLinesAreReadLikeSmallOnes) {
  std::mt19937 generator(3);
  std::string lines;
  Documents expected;
  for (int i = 0; i < 300; ++i) {
    std::string text;
    lines += random_json_line(generator, text) + "\n";
    expected.push_back(text);
  }
  const auto path = folder_.write("a.jsonl", lines);
  CorpusOptions options;
  EXPECT_EQ(read_documents({path}, options), expected);
  options.max_line_bytes = 1;
  EXPECT_EQ(read_documents({path}, options), expected);
  options.block_bytes = 64;
  EXPECT_EQ(read_documents({path}, options), expected);
}

TEST_F(CorpusReaderTest, DamagedLargeJsonLinesAreRefused) {
  CorpusOptions options;
  options.max_line_bytes = 1;
  for (const char* line :
       {"{\"body\": \"x\"}", "{\"text\": 7}", "{\"text\": \"x\", \"text\": \"y\"}", "[\"text\"]",
        "{\"text\": \"x\"", "{\"text\": \"x\"} {}", "{\"text\": \"\\ud800\"}",
        "{\"text\": \"\\ud800x\"}", "{\"text\": \"\\udc00\"}", "{\"text\": \"\\x\"}",
        "{\"text\": \"\\u12g4\"}", "{\"text\" \"x\"}", "{text: \"x\"}"}) {
    const auto path = folder_.write("a.jsonl", line);
    EXPECT_THAT(error_of({path}, options), HasSubstr(path + ": line 1 ")) << line;
  }
}

TEST_F(CorpusReaderTest, LoneSurrogatesCanBeReplaced) {
  const auto path = folder_.write(
      "a.jsonl", R"({"text": "a\ud800b\udc00\\ud800\ud83d\ude00\ud83d\ud83d\ude00"})");
  CorpusOptions options;
  options.invalid_utf8 = InvalidUtf8::replace;
  const std::string expected = "a\uFFFDb\uFFFD\\ud800\U0001F600\uFFFD\U0001F600";
  EXPECT_THAT(read_documents({path}, options), ElementsAre(expected));
  options.max_line_bytes = 1;
  EXPECT_THAT(read_documents({path}, options), ElementsAre(expected));
}

TEST_F(CorpusReaderTest, BlocksOfAnySizeHoldTheSame) {
  std::string text;
  std::mt19937 generator(8);
  for (int i = 0; i < 400; ++i) {
    text += made_up_text(1 + generator() % 300, generator());
    text += generator() % 2 ? "\u20ac\n\n" : "\n";
    if (generator() % 20 == 0) text += std::string(500, "x \n"[generator() % 3]);
  }
  const auto path = folder_.write("a.txt", text);
  const Documents expected = read_documents({path});
  EXPECT_GT(expected.size(), 100u);
  for (const std::size_t bytes : {64, 65, 100, 1000, 10000}) {
    CorpusOptions options;
    options.block_bytes = bytes;
    EXPECT_EQ(read_documents({path}, options), expected) << bytes;
  }
}

TEST_F(CorpusReaderTest, CutsFallBetweenCharacters) {
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "\u20ac";
  const auto path = folder_.write("a.txt", text);
  CorpusOptions options;
  options.block_bytes = 100;
  CorpusReader reader(find_corpus_files({path}), options);
  TextBlock block;
  while (reader.next(block)) EXPECT_EQ(block.text.size() % 3, 0u);
}

TEST_F(CorpusReaderTest, CountsBytesReadAndText) {
  const std::string text = made_up_text(200000, 3);
  const auto path = folder_.write("a.txt.gz", gzip(text));
  CorpusReader reader(find_corpus_files({path}), {});
  std::size_t bytes = 0;
  for (const std::string& document : read_documents(reader, 1 << 20)) bytes += document.size();
  EXPECT_EQ(reader.counts().text_bytes, bytes);
  EXPECT_EQ(reader.bytes_read(), fs::file_size(path));
  EXPECT_EQ(reader.total_bytes(), fs::file_size(path));
}

TEST_F(CorpusReaderTest, GlobsAndFolders) {
  folder_.write("c/b.txt", "b");
  folder_.write("c/a.txt", "a");
  folder_.write("c/deep/c.jsonl", "{\"text\": \"c\"}");
  folder_.write("c/readme.md", "not this");
  folder_.write("c/.hidden/d.txt", "not this");
  EXPECT_THAT(read_documents({folder_.path("c/*.txt")}), ElementsAre("a", "b"));
  EXPECT_THAT(read_documents({folder_.path("c")}), ElementsAre("a", "b", "c"));
}

TEST_F(CorpusReaderTest, BadArguments) {
  const auto refused = [&](const std::vector<std::string>& paths) {
    return message_of<std::invalid_argument>([&] { find_corpus_files(paths); });
  };
  EXPECT_THAT(refused({folder_.path("none.txt")}), HasSubstr("none.txt: no such file"));
  EXPECT_THAT(refused({folder_.path("*.txt")}), HasSubstr("*.txt: no file matches"));
  const auto other = folder_.write("a.pdf", "x");
  EXPECT_THAT(refused({other}), HasSubstr("a.pdf: is neither .txt nor .jsonl"));
  EXPECT_THAT(refused({folder_.path()}), HasSubstr("holds no .txt or .jsonl file"));
  const auto text = folder_.write("a.txt", "x");
  EXPECT_THAT(refused({text, folder_.path("*.txt")}), HasSubstr("named twice"));
  EXPECT_THAT(refused({}), HasSubstr("names no file"));
  fs::create_directory(folder_.path("b.txt"));
  EXPECT_THAT(refused({folder_.path("b*.txt")}), HasSubstr("is a folder"));
}

TEST_F(CorpusReaderTest, UnreadableFolder) {
  if (::geteuid() == 0) GTEST_SKIP() << "root can read everything";
  folder_.write("c/a.txt", "a");
  fs::permissions(folder_.path("c"), fs::perms::none);
  EXPECT_THAT(message_of<std::runtime_error>([&] { find_corpus_files({folder_.path("c")}); }),
              HasSubstr("cannot be read"));
  fs::permissions(folder_.path("c"), fs::perms::owner_all);
}

TEST_F(CorpusReaderTest, AFileThatGoesAwayIsNamed) {
  const auto path = folder_.write("a.txt", "a");
  const auto files = find_corpus_files({path});
  fs::remove(path);
  CorpusReader reader(files, {});
  TextBlock block;
  EXPECT_THAT(message_of<std::runtime_error>([&] { reader.next(block); }),
              HasSubstr(path + ": cannot be opened: No such file"));
}

}  // namespace
}  // namespace chaski
