#include "data/loader.h"

#include <algorithm>
#include <gmock/gmock.h>
#include <set>

#include "data/evaluation_windows.h"
#include "data/sampler.h"
#include "data/token_file_writer.h"
#include "tests/data/fixtures.h"

namespace chaski {
namespace {

using namespace chaski::testing;
using ::testing::HasSubstr;

// Token files with random tokens and documents, and all of it in memory beside them.
class LoaderTest : public ::testing::Test {
 protected:
  void write(const std::string& name, std::size_t num_tokens, unsigned seed,
             const Tokenizer& tokenizer = *small_tokenizer()) {
    std::mt19937 generator(seed);
    std::vector<std::uint16_t> ids(num_tokens);
    for (auto& id : ids) id = static_cast<std::uint16_t>(generator() % 600);
    std::vector<std::uint64_t> ends;
    for (std::uint64_t end = 0; end < num_tokens;) {
      document_starts_.push_back(tokens_.size() + end);
      end = std::min<std::uint64_t>(num_tokens, end + 1 + generator() % 30);
      ends.push_back(end);
    }
    TokenFileHeader header;
    header.tokenizer_fingerprint = tokenizer.fingerprint();
    header.tokenizer_model = tokenizer.serialized();
    header.vocab_size = 600;
    header.eos_id = 2;
    TokenFileWriter writer(folder_.path(name), false);
    writer.write_header(header);
    writer.begin_part(Part::train, {num_tokens, ends.size(), num_tokens * 2});
    writer.add_tokens(std::as_bytes(std::span(ids)));
    for (const std::uint64_t end : ends) writer.add_document_end(end);
    writer.end_part();
    writer.commit();
    paths_.push_back(folder_.path(name));
    tokens_.insert(tokens_.end(), ids.begin(), ids.end());
  }

  std::shared_ptr<const SequenceDataset> dataset(std::int64_t length) const {
    return SequenceDataset::open(paths_, Part::train, length);
  }

  // The definition, token by token.
  void expect_row(const Batch& batch, std::int64_t row, std::uint64_t sequence, bool reset) const {
    const std::int64_t length = batch.sequence_length;
    std::int32_t position = 0;
    for (std::int64_t i = 0; i < length; ++i) {
      const std::size_t at = sequence * length + i;
      if (reset && std::binary_search(document_starts_.begin(), document_starts_.end(), at)) {
        position = 0;
      }
      ASSERT_EQ(batch.tokens[row * length + i], tokens_[at]);
      ASSERT_EQ(batch.targets[row * length + i], tokens_[at + 1]);
      ASSERT_EQ(batch.positions[row * length + i], position++);
    }
  }

  TemporaryFolder folder_;
  std::vector<std::string> paths_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::uint64_t> document_starts_;
};

TEST_F(LoaderTest, GivesWhatTheDefinitionSays) {
  write("a.h5", 1000, 1);
  write("b.h5", 37, 2);
  write("c.h5", 800, 3);
  for (const bool reset : {false, true}) {
    for (const bool shuffle : {false, true}) {
      const auto data = dataset(32);
      EXPECT_EQ(data->num_sequences(), (tokens_.size() - 1) / 32);
      LoaderOptions options;
      options.seed = 5;
      options.global_batch = 12;
      options.micro_batch = 2;
      options.first_row = 4;
      options.num_rows = 8;
      options.shuffle = shuffle;
      options.reset_at_documents = reset;
      Loader loader(data, options);
      EXPECT_EQ(loader.micro_batches_per_step(), 4);
      // Several epochs.
      for (std::uint64_t step = 0; step < 30; ++step) {
        for (std::int64_t micro = 0; micro < 4; ++micro) {
          const Batch& batch = loader.get(step, micro);
          ASSERT_EQ(batch.rows, 2);
          for (std::int64_t row = 0; row < 2; ++row) {
            const std::uint64_t sample = step * 12 + 4 + micro * 2 + row;
            expect_row(batch, row, sequence_at(sample, data->num_sequences(), 5, shuffle).sequence,
                       reset);
          }
        }
        EXPECT_EQ(loader.epoch(step), step * 12 / data->num_sequences());
      }
    }
  }
}

TEST_F(LoaderTest, AnyStepAtAnyTime) {
  write("a.h5", 5000, 1);
  LoaderOptions options;
  options.global_batch = options.num_rows = 6;
  options.micro_batch = 3;
  for (const std::int64_t depth : {1, 2, 7}) {
    options.prefetch_depth = depth;
    Loader loader(dataset(16), options);
    std::mt19937 generator(2);
    std::uint64_t step = 0;
    std::int64_t micro = 0;
    for (int i = 0; i < 500; ++i) {
      if (generator() % 3 == 0) {
        step = generator() % 200;
        micro = generator() % 2;
      } else if (++micro == 2) {
        micro = 0;
        ++step;
      }
      const Batch& batch = loader.get(step, micro);
      for (std::int64_t row = 0; row < 3; ++row) {
        const std::uint64_t sample = step * 6 + micro * 3 + row;
        expect_row(batch, row,
                   sequence_at(sample, loader.dataset().num_sequences(), 0, true).sequence, false);
      }
    }
  }
}

TEST_F(LoaderTest, ReplicasShareTheGlobalBatchOut) {
  write("a.h5", 3000, 1);
  LoaderOptions options;
  options.global_batch = options.num_rows = options.micro_batch = 8;
  Loader whole(dataset(10), options);
  options.num_rows = 4;
  options.micro_batch = 2;
  Loader first(dataset(10), options);
  options.first_row = 4;
  Loader second(dataset(10), options);
  std::vector<std::int32_t> together;
  for (Loader* loader : {&first, &second}) {
    for (const std::int64_t micro : {0, 1}) {
      const Batch& batch = loader->get(3, micro);
      together.insert(together.end(), batch.tokens.begin(), batch.tokens.end());
    }
  }
  EXPECT_EQ(whole.get(3, 0).tokens, together);
}

TEST_F(LoaderTest, BatchesAreRecycled) {
  write("a.h5", 5000, 1);
  LoaderOptions options;
  options.prefetch_depth = 3;
  Loader loader(dataset(16), options);
  std::set<const std::int32_t*> buffers;
  for (std::uint64_t step = 0; step < 200; ++step) {
    buffers.insert(loader.get(step, 0).tokens.data());
  }
  EXPECT_LE(buffers.size(), 5u);
}

TEST_F(LoaderTest, DamageReachesTheCaller) {
  write("a.h5", 5000, 1);
  std::string content = read_file(paths_[0]);
  // Every token out of the vocabulary from the middle on.
  const std::uint16_t first = static_cast<std::uint16_t>(tokens_[2500]);
  std::string sample(reinterpret_cast<const char*>(&first), 2);
  for (int i = 1; i < 4; ++i) {
    const auto id = static_cast<std::uint16_t>(tokens_[2500 + i]);
    sample.append(reinterpret_cast<const char*>(&id), 2);
  }
  const std::size_t at = content.find(sample);
  ASSERT_NE(at, std::string::npos);
  content.replace(at, 4, "\xFF\xFF\xFF\xFF");
  paths_[0] = folder_.write("b.h5", content);
  LoaderOptions options;
  options.shuffle = false;
  Loader loader(dataset(10), options);
  for (std::uint64_t step = 0; step < 249; ++step) loader.get(step, 0);
  for (int attempt = 0; attempt < 2; ++attempt) {
    EXPECT_THAT(message_of<std::runtime_error>([&] { loader.get(250, 0); }),
                HasSubstr("b.h5 (train part): token 2500 has id 65535"));
  }
  expect_row(loader.get(260, 0), 0, 260, false);
}

TEST_F(LoaderTest, ImpossibleOptions) {
  write("a.h5", 100, 1);
  const auto data = dataset(10);
  const auto refused = [&](auto change) {
    LoaderOptions options;
    options.global_batch = options.num_rows = 8;
    change(options);
    return message_of<std::invalid_argument>([&] { Loader loader(data, options); });
  };
  EXPECT_THAT(refused([](LoaderOptions& o) { o.micro_batch = 3; }),
              HasSubstr("8 rows a replica are no multiple of micro_batch 3"));
  EXPECT_THAT(refused([](LoaderOptions& o) { o.first_row = 1; }), HasSubstr("do not lie in"));
  EXPECT_THAT(refused([](LoaderOptions& o) { o.micro_batch = 0; }), HasSubstr("micro_batch 0"));
  EXPECT_THAT(refused([](LoaderOptions& o) { o.prefetch_depth = 0; }), HasSubstr("prefetch_depth"));
  EXPECT_THAT(message_of<std::invalid_argument>([&] { dataset(100); }),
              HasSubstr("holds 100 tokens, fewer than the 101"));
  EXPECT_EQ(dataset(99)->num_sequences(), 1u);
  Loader loader(data, {});
  EXPECT_THROW(loader.get(0, 1), std::invalid_argument);
}

TEST_F(LoaderTest, FilesOfDifferentTokenizersAreRefused) {
  write("a.h5", 100, 1);
  write("b.h5", 100, 2, *train_on(made_up_text(50000, 9), 600));
  EXPECT_THAT(message_of<std::invalid_argument>([&] { dataset(10); }),
              HasSubstr("b.h5: was made by another tokenizer than " + paths_[0]));
  EXPECT_THAT(message_of<std::invalid_argument>(
                  [&] { SequenceDataset::open({paths_[0]}, Part::validation, 10); }),
              HasSubstr("has no validation part"));
}

TEST_F(LoaderTest, EvaluationMakesEveryTokenButTheFirstATargetOnce) {
  write("a.h5", 61, 1);
  write("b.h5", 40, 2);
  const auto stream = TokenStream::open(paths_, Part::train);
  EXPECT_EQ(stream->num_bytes(), 202u);
  for (const std::int64_t length : {1, 2, 7, 10, 20, 25, 33, 50, 99, 100, 101, 1000}) {
    for (const std::int64_t shards : {1, 2, 3, 7}) {
      for (const std::int64_t rows : {1, 3, 100}) {
        std::vector<std::int32_t> inputs, targets;
        std::uint64_t windows = 0;
        for (std::int64_t shard = 0; shard < shards; ++shard) {
          EvaluationWindows reader(stream, length, shard, shards);
          Batch batch;
          while (reader.next(batch, rows)) {
            ASSERT_LE(batch.rows, rows);
            for (std::int64_t i = 0; i < batch.rows * batch.sequence_length; ++i) {
              ASSERT_EQ(batch.positions[i], i % batch.sequence_length);
            }
            const std::int64_t before = static_cast<std::int64_t>(targets.size());
            ASSERT_EQ(before % length, 0) << "a window begins at a multiple of the length";
            ASSERT_TRUE(batch.sequence_length == length || before + batch.sequence_length == 100)
                << "only the last one is short";
            inputs.insert(inputs.end(), batch.tokens.begin(), batch.tokens.end());
            targets.insert(targets.end(), batch.targets.begin(), batch.targets.end());
          }
          EXPECT_EQ(reader.windows_read(), reader.shard_windows());
          EXPECT_EQ(reader.num_targets(), 100u);
          windows += reader.shard_windows();
          if (shard == shards - 1) {
            EXPECT_EQ(windows, reader.num_windows());
          }
        }
        EXPECT_EQ(inputs, std::vector<std::int32_t>(tokens_.begin(), tokens_.end() - 1));
        EXPECT_EQ(targets, std::vector<std::int32_t>(tokens_.begin() + 1, tokens_.end()));
      }
    }
  }
  EXPECT_THROW(EvaluationWindows(stream, 0), std::invalid_argument);
  EXPECT_THROW(EvaluationWindows(stream, 5, 2, 2), std::invalid_argument);
}

TEST_F(LoaderTest, EvaluationOfASingleToken) {
  write("a.h5", 1, 1);
  EXPECT_THAT(message_of<std::invalid_argument>(
                  [&] { EvaluationWindows windows(TokenStream::open(paths_, Part::train), 8); }),
              HasSubstr("too short to be evaluated"));
}

}  // namespace
}  // namespace chaski
