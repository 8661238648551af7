#include <fmt/format.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include "fault/checkpoint/directory.h"
#include "fault/checkpoint/marker.h"
#include "fault/checkpoint/reader.h"
#include "fault/checkpoint/shard.h"
#include "fault/checkpoint/writer.h"
#include "tests/fault/checkpoint/faulty_file_system.h"
#include "tests/fault/checkpoint/mutation.h"
#include "tests/fault/checkpoint/small_model.h"
#include "tests/fault/checkpoint/temporary_directory.h"
#include "tests/fuzz/fuzz_files.h"
#include "tests/fuzz/guarded_read.h"
#include "tests/fuzz/hdf5_vandal.h"
#include "tests/fuzz/text_mutation.h"

namespace chaski {
namespace {

class CheckpointFuzz : public testing::Test {
 protected:
  static constexpr const char* kCheckpoint = "/c/step-00000020";
  const std::string shard_path_ = std::string(kCheckpoint) + "/" + shard_file_name(0, 1);
  const std::string marker_path_ = std::string(kCheckpoint) + "/COMPLETE";

  CheckpointFuzz() {
    CheckpointWriterOptions options;
    options.async = false;
    CheckpointWriter writer("/c", options, files_);
    for (const std::int64_t step : {10, 20}) {
      model_.fill(step);
      writer.save(model_.metadata(step), model_.weights(), model_.optimizer());
    }
    shard_ = text_of(files_.contents(shard_path_));
    marker_ = text_of(files_.contents(marker_path_));
  }

  static std::string text_of(const std::vector<char>& bytes) {
    return {bytes.begin(), bytes.end()};
  }
  void put(const std::string& path, const std::string& contents) {
    files_.contents(path).assign(contents.begin(), contents.end());
  }
  // A marker that fits the shard: nothing then stands before HDF5 and the rest of the reader.
  void put_shard(const std::string& contents) {
    put(shard_path_, contents);
    CompletionMarker marker{20, 2, {}};
    marker.shards.push_back(
        {shard_file_name(0, 1), contents.size(), XXH3_64bits(contents.data(), contents.size())});
    put(marker_path_, encode_marker(marker));
  }

  // Does with a checkpoint all that `--resume`, `eval` and `inspect --verify` do.
  void use() {
    const CheckpointReader reader(kCheckpoint, Verification::checksums, files_);
    std::vector<char> bytes;
    for (const StoredTensor& tensor : reader.tensors()) {
      bytes.resize(tensor.bytes);
      reader.read(tensor, bytes.data());
    }
    model_.read(reader);
  }

  FaultyFileSystem files_;
  SmallModel model_;
  std::string shard_, marker_;
};

TEST_F(CheckpointFuzz, MarkersAreNeverTakenForOthers) {
  TextMutator mutator(fuzz_seed());
  for (int i = 0; i < scaled(2000); ++i) {
    const std::string marker = mutator.mutate(marker_);
    put(marker_path_, marker);
    EXPECT_FALSE(read_guarded("marker", marker, [&] { use(); })) << marker;
    // The one before is found.
    const ResolvedCheckpoint resolved = resolve_checkpoint("/c", "auto", files_);
    ASSERT_TRUE(resolved.checkpoint);
    ASSERT_EQ(resolved.checkpoint->step, 10);
  }
}

TEST_F(CheckpointFuzz, MarkersWithAFittingChecksum) {
  TextMutator mutator(fuzz_seed());
  const std::string line = marker_.substr(0, marker_.find('\n'));
  for (int i = 0; i < scaled(3000); ++i) {
    std::string marker = mutator.mutate(line);
    marker += fmt::format("\nxxh3-64 {:016x}\n", XXH3_64bits(marker.data(), marker.size()));
    put(marker_path_, marker);
    read_guarded("marker-fitting", marker, [&] { use(); });
  }
}

TEST_F(CheckpointFuzz, ShardsWithAFittingMarker) {
  Mutator mutator(fuzz_seed());
  const std::vector<char> original(shard_.begin(), shard_.end());
  int refused = 0;
  for (int i = 0; i < scaled(3000); ++i) {
    const std::string shard = text_of(mutator.mutate(original));
    put_shard(shard);
    if (!read_guarded("shard", shard, [&] { use(); })) ++refused;
  }
  EXPECT_GT(refused, scaled(1000));
}

TEST_F(CheckpointFuzz, ShardsOfAnotherStructure) {
  const TemporaryDirectory directory;
  const std::string path = directory.path() + "/shard.h5";
  Hdf5Vandal vandal(fuzz_seed());
  int refused = 0;
  for (int i = 0; i < scaled(1500); ++i) {
    write_file(path, shard_);
    vandal.change(path);
    const std::string shard = read_file(path);
    put_shard(shard);
    if (!read_guarded("shard-structure", shard, [&] { use(); })) ++refused;
  }
  EXPECT_GT(refused, scaled(500));
}

}  // namespace
}  // namespace chaski
