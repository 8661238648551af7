#include "data/tokenizer.h"

#include <algorithm>
#include <gmock/gmock.h>
#include <map>
#include <sentencepiece_processor.h>
#include <set>

#include "data/tokenizer_training.h"
#include "data/utf8.h"
#include "tests/data/fixtures.h"

namespace chaski {
namespace {

using namespace chaski::testing;
using ::testing::HasSubstr;

std::vector<std::string> adversarial_texts() {
  std::vector<std::string> texts = {"",
                                    " ",
                                    "  ",
                                    "\n",
                                    "\n\n\n",
                                    "\t",
                                    "\r\n",
                                    " \n ",
                                    "a",
                                    " a",
                                    "a ",
                                    "  a  b   ",
                                    "a\nb",
                                    "a\n\nb\n",
                                    "\ta\t\tb\t",
                                    std::string("\0", 1),
                                    std::string("a\0b\0\0c", 6),
                                    "\u2581",
                                    "\u2581\u2581 a\u2581b \u2581",
                                    "\u2047",
                                    " \u2047 ",
                                    "\uFFFD",
                                    "\uFEFF",
                                    "<s>",
                                    "</s>",
                                    "<unk>",
                                    "<0x0A>",
                                    "<s></s> <unk><0x41>",
                                    "\u00e9e\u0301",
                                    "\uFB01\u2460",
                                    "\u3000\u00A0\u2003",
                                    "\U0001F468\u200D\U0001F469\u200D\U0001F467",
                                    "\u0001\u007F\u0080",
                                    "\U0010FFFF",
                                    "\uFFFF",
                                    "日本語のテキスト",
                                    "שלום",
                                    "0123456789",
                                    "...,,,;;;",
                                    "E2 96 81"};
  std::string everything;
  for (unsigned code = 1; code < 0x3000; ++code) {
    // Only what a wide character literal would: no surrogates in this range.
    if (code < 0x80) {
      everything += static_cast<char>(code);
    } else if (code < 0x800) {
      everything += static_cast<char>(0xC0 | (code >> 6));
      everything += static_cast<char>(0x80 | (code & 0x3F));
    } else {
      everything += static_cast<char>(0xE0 | (code >> 12));
      everything += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
      everything += static_cast<char>(0x80 | (code & 0x3F));
    }
  }
  texts.push_back(everything);
  std::mt19937 generator(11);
  for (int i = 0; i < 500; ++i) {
    std::string text;
    for (unsigned k = generator() % 40; k > 0; --k) text += texts[generator() % 38];
    texts.push_back(text + made_up_text(generator() % 50, generator()));
  }
  texts.push_back(std::string(100000, ' '));
  texts.push_back(std::string(100000, 'x'));
  texts.push_back(made_up_text(100000, 77));
  return texts;
}

class TokenizerTest : public ::testing::TestWithParam<TokenizerType> {
 protected:
  std::shared_ptr<const Tokenizer> tokenizer() const {
    static std::map<TokenizerType, std::shared_ptr<const Tokenizer>> trained;
    auto& result = trained[GetParam()];
    if (!result) result = train_on(made_up_text(200000, 1), 600, GetParam());
    return result;
  }
};

INSTANTIATE_TEST_SUITE_P(Types, TokenizerTest,
                         ::testing::Values(TokenizerType::bpe, TokenizerType::unigram),
                         [](const auto& info) {
                           return info.param == TokenizerType::bpe ? "Bpe" : "Unigram";
                         });

TEST_P(TokenizerTest, AnyTextCanBeGotBack) {
  ASSERT_TRUE(tokenizer()->lossless());
  for (const std::string& text : adversarial_texts()) {
    const auto ids = tokenizer()->encode(text);
    ASSERT_EQ(tokenizer()->decode(ids), text);
    for (const std::int32_t id : ids) {
      ASSERT_GE(id, 3) << "a control token in " << text;
      ASSERT_LT(id, tokenizer()->vocab_size());
    }
  }
}

TEST_P(TokenizerTest, EncodesLikeSentencePieceOnTheWholeText) {
  sentencepiece::SentencePieceProcessor reference;
  ASSERT_TRUE(reference.LoadFromSerializedProto(tokenizer()->serialized()).ok());
  Encoder encoder(tokenizer());
  std::size_t tokens = 0, different = 0;
  for (const std::string& text : adversarial_texts()) {
    if (text.find("\u2581") != std::string::npos) continue;
    std::vector<int> expected;
    ASSERT_TRUE(reference.Encode(text, &expected).ok());
    std::vector<std::int32_t> ids;
    encoder.encode(text, ids);
    EXPECT_EQ(ids, tokenizer()->encode(text));
    if (GetParam() == TokenizerType::bpe) {
      ASSERT_EQ(ids, expected) << text.substr(0, 200);
    } else {
      // A unigram model adds up scores in float: with equally good segmentations the sum over the
      // whole text may round either way.
      different += ids != expected;
    }
    ++tokens;
  }
  EXPECT_LE(different * 20, tokens);
}

TEST_P(TokenizerTest, DecodesLikeSentencePiece) {
  sentencepiece::SentencePieceProcessor reference;
  ASSERT_TRUE(reference.LoadFromSerializedProto(tokenizer()->serialized()).ok());
  std::mt19937 generator(4);
  for (int i = 0; i < 300; ++i) {
    std::vector<int> ids(generator() % 30);
    for (int& id : ids) id = static_cast<int>(1 + generator() % (tokenizer()->vocab_size() - 1));
    std::string expected;
    ASSERT_TRUE(reference.Decode(ids, &expected).ok());
    // SentencePiece writes one U+FFFD for each byte that is no UTF-8, Unicode recommends one for
    // each broken character.
    const auto squeeze = [](std::string text) {
      const std::string one(kReplacementCharacter);
      for (std::size_t at; (at = text.find(one + one)) != std::string::npos;) text.erase(at, 3);
      return text;
    };
    EXPECT_EQ(squeeze(tokenizer()->decode(ids)), squeeze(expected));
  }
}

TEST_P(TokenizerTest, TheEncoderRemembersWithoutChangingAnything) {
  Encoder encoder(tokenizer());
  // Far more words than it remembers.
  std::mt19937 generator(21);
  std::string text;
  for (int i = 0; i < 150000; ++i) text += std::to_string(generator()) + "ka" + " ";
  std::vector<std::int32_t> ids, again;
  encoder.encode(text, ids);
  encoder.encode(text, again);
  EXPECT_EQ(ids, again);
  EXPECT_EQ(tokenizer()->decode(ids), text);
}

TEST_P(TokenizerTest, TrainingIsDeterministic) {
  const std::string text = made_up_text(60000, 2);
  const auto a = train_on(text, 400, GetParam()), b = train_on(text, 400, GetParam());
  EXPECT_EQ(a->serialized(), b->serialized());
  EXPECT_EQ(a->fingerprint(), b->fingerprint());
  EXPECT_NE(a->fingerprint(), tokenizer()->fingerprint());
  EXPECT_EQ(a->fingerprint().size(), 32u);
  EXPECT_EQ(a->vocab_size(), 400);
}

TEST(TokenizerTrainingTest, SpecialTokensAreLlamas) {
  const auto tokenizer = small_tokenizer();
  EXPECT_EQ(tokenizer->unk_id(), 0);
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_EQ(tokenizer->decode(std::vector<std::int32_t>{1, 2}), "");
  EXPECT_THROW(tokenizer->decode(std::vector<std::int32_t>{600}), std::out_of_range);
  EXPECT_THROW(tokenizer->decode(std::vector<std::int32_t>{-1}), std::out_of_range);
}

TEST(TokenizerTrainingTest, MarkupInTheCorpusIsText) {
  // Words that look like SentencePiece's own marks, and characters that its trainer reserves.
  std::string text = made_up_text(100000, 1);
  for (int i = 0; i < 3000; ++i) text += " <s> </s> <unk> <0x41>\t<s>\u2581\u2047 a\u2047b";
  const auto tokenizer = train_on(text, 600);
  const std::string sample = "<s> </s><unk> <0x41>\t\u2581\u2047";
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(sample)), sample);
}

TEST(TokenizerTrainingTest, LearnsFromLongLinesToo) {
  std::string text = made_up_text(200000, 1);
  std::replace(text.begin(), text.end(), '\n', ' ');
  const auto tokenizer = train_on(text, 600);
  const auto ids = tokenizer->encode(text);
  EXPECT_LT(ids.size() * 2, text.size()) << "more than bytes must have been learned";
}

TEST(TokenizerTrainingTest, ImpossibleVocabularies) {
  const std::string text = made_up_text(3000, 1);
  EXPECT_THAT(message_of<std::invalid_argument>([&] { train_on(text, 200); }),
              HasSubstr("--vocab-size 200: at least 260"));
  const std::string large = message_of<std::invalid_argument>([&] { train_on(text, 100000); });
  EXPECT_THAT(large, HasSubstr("--vocab-size 100000: the corpus gives at most "));
  EXPECT_THAT(large, HasSubstr("hint: pass --vocab-size "));
  std::string alphabet;
  for (int repeat = 0; repeat < 3; ++repeat) {
    for (unsigned code = 0x4E00; code < 0x5000; ++code) {
      alphabet += static_cast<char>(0xE0 | (code >> 12));
      alphabet += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
      alphabet += static_cast<char>(0x80 | (code & 0x3F));
    }
  }
  EXPECT_THAT(message_of<std::invalid_argument>([&] { train_on(alphabet, 300); }),
              HasSubstr("the characters of the corpus alone need "));
  EXPECT_THAT(message_of<std::invalid_argument>([&] { train_on("\n\n", 300); }),
              HasSubstr("holds no text"));
}

TEST(TokenizerTrainingTest, SamplesLargeCorporaEvenly) {
  const TemporaryFolder folder;
  // The second half has words that the first has not.
  std::string text = made_up_text(400000, 1);
  for (int i = 0; i < 40000; ++i) text += "zzyzx wyvern\n";
  CorpusReader reader(find_corpus_files({folder.write("a.txt", text)}), {});
  TokenizerTraining training;
  training.vocab_size = 500;
  training.sample_bytes = 50000;
  TokenizerTrainingReport report;
  const auto tokenizer = train_tokenizer(reader, training, report);
  EXPECT_EQ(report.corpus.text_bytes, text.size() - 1);
  EXPECT_LE(report.sampled_bytes, 50000u);
  EXPECT_GE(report.sampled_bytes, 30000u);
  EXPECT_EQ(tokenizer->encode(" wyvern wyvern").size(), 2u);
}

TEST(TokenizerFileTest, BadFiles) {
  const TemporaryFolder folder;
  EXPECT_THAT(message_of<std::runtime_error>([&] { Tokenizer::load(folder.path("none")); }),
              HasSubstr("none: the tokenizer cannot be opened"));
  const auto garbage = folder.write("garbage.model", "no model");
  EXPECT_THAT(message_of<std::invalid_argument>([&] { Tokenizer::load(garbage); }),
              HasSubstr("garbage.model: is not a SentencePiece model"));
  EXPECT_THROW(Tokenizer::load(folder.write("empty.model", "")), std::invalid_argument);
  EXPECT_THROW(Tokenizer::load(folder.path()), std::exception);
  const std::string& good = small_tokenizer()->serialized();
  for (std::size_t size = 1; size < good.size(); size += 97) {
    try {
      Tokenizer::from_bytes(good.substr(0, size), "cut");
    } catch (const std::exception&) {
      // Some prefixes are models; none may crash.
    }
  }
}

TEST(TokenizerFileTest, LoadsWhatWasSaved) {
  const TemporaryFolder folder;
  const auto path = folder.write("a.model", small_tokenizer()->serialized());
  const auto loaded = Tokenizer::load(path);
  EXPECT_EQ(loaded->fingerprint(), small_tokenizer()->fingerprint());
  EXPECT_EQ(loaded->encode("karito mensol"), small_tokenizer()->encode("karito mensol"));
}

TEST(StreamDecoderTest, NeverHandsOutHalfACharacter) {
  const auto tokenizer = small_tokenizer();
  const std::string text = "ka \U0001F600\u20ac\u00e9 \u2581ri\n";
  std::string decoded;
  StreamDecoder decoder(tokenizer);
  for (const std::int32_t id : tokenizer->encode(text)) {
    const std::string part = decoder.push(id);
    EXPECT_EQ(valid_utf8_prefix(part), part.size());
    decoded += part;
  }
  EXPECT_EQ(decoded, text) << "all is certain once the last byte is there";
  EXPECT_EQ(decoder.finish(), "");
}

TEST(StreamDecoderTest, BrokenCharactersAreReplaced) {
  const auto tokenizer = small_tokenizer();
  const auto euro = tokenizer->encode("\u20ac");
  ASSERT_EQ(euro.size(), 3u) << "made of bytes";
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push(euro[0]), "");
  EXPECT_EQ(decoder.push(euro[1]), "");
  EXPECT_EQ(decoder.push(euro[0]), "\uFFFD");
  EXPECT_EQ(decoder.finish(), "\uFFFD");
  EXPECT_EQ(decoder.finish(), "");
}

}  // namespace
}  // namespace chaski
