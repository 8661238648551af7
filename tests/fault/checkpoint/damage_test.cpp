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

namespace chaski {
namespace {

constexpr const char* kCheckpoint = "/c/step-00000020";
constexpr const char* kShard = "/c/step-00000020/shard-00000-of-00001.h5";
constexpr const char* kMarker = "/c/step-00000020/COMPLETE";

class CheckpointDamage : public testing::Test {
 protected:
  void SetUp() override {
    CheckpointWriterOptions options;
    options.async = false;
    CheckpointWriter writer("/c", options, files_);
    for (const std::int64_t step : {10, 20}) {
      model_.fill(step);
      writer.save(model_.metadata(step), model_.weights(), model_.optimizer());
    }
    shard_ = files_.contents(kShard);
    marker_ = files_.contents(kMarker);
  }
  // Reads everything; true when that works.
  bool read_all(Verification verification) {
    try {
      const CheckpointReader reader(kCheckpoint, verification, files_);
      model_.read(reader);
      return true;
    } catch (const std::runtime_error&) {
      return false;
    } catch (const std::invalid_argument&) {
      return false;
    }
  }

  FaultyFileSystem files_;
  SmallModel model_;
  std::vector<char> shard_;
  std::vector<char> marker_;
};

TEST_F(CheckpointDamage, AnyChangedByteIsNoticedAndTheOneBeforeTaken) {
  for (const char* path : {kShard, kMarker}) {
    std::vector<char>& contents = files_.contents(path);
    const std::size_t stride = contents.size() / 250 + 1;
    for (std::size_t i = 0; i < contents.size(); i += stride) {
      contents[i] = static_cast<char>(contents[i] ^ (1 << (i % 8)));
      const ResolvedCheckpoint resolved = resolve_checkpoint("/c", "auto", files_);
      contents[i] = static_cast<char>(contents[i] ^ (1 << (i % 8)));
      ASSERT_TRUE(resolved.checkpoint) << path << " byte " << i;
      ASSERT_EQ(resolved.checkpoint->step, 10) << path << " byte " << i;
      ASSERT_EQ(resolved.skipped.size(), 1U);
      ASSERT_EQ(resolved.skipped[0].path, kCheckpoint);
      ASSERT_NE(resolved.skipped[0].reason.find("is damaged (checksum)"), std::string::npos)
          << resolved.skipped[0].reason;
    }
  }
  EXPECT_EQ(resolve_checkpoint("/c", "auto", files_).checkpoint->step, 20);
}

TEST_F(CheckpointDamage, TruncatedAndMissingFiles) {
  files_.contents(kShard).pop_back();
  auto resolved = resolve_checkpoint("/c", "auto", files_);
  EXPECT_EQ(resolved.checkpoint->step, 10);
  EXPECT_NE(resolved.skipped.at(0).reason.find("bytes instead of"), std::string::npos);
  files_.remove_file(kShard);
  resolved = resolve_checkpoint("/c", "auto", files_);
  EXPECT_NE(resolved.skipped.at(0).reason.find("is missing"), std::string::npos);
  EXPECT_THROW(CheckpointReader(kCheckpoint, Verification::sizes, files_), std::runtime_error);
}

// A tensor's own checksum is checked when it is read, whatever was verified before.
TEST_F(CheckpointDamage, DamageAfterVerification) {
  std::uint64_t offset = 0;
  {
    const CheckpointReader reader(kCheckpoint, Verification::checksums, files_);
    offset = reader.at("weights/model.norm.weight").offset;
  }
  files_.contents(kShard)[offset + 1] ^= 1;
  const CheckpointReader reader(kCheckpoint, Verification::sizes, files_);
  try {
    reader.read_weights(model_.weights());
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("weights/model.norm.weight is damaged (checksum)"),
              std::string::npos);
  }
}

TEST_F(CheckpointDamage, MutatedShards) {
  Mutator mutator(1);
  for (int i = 0; i < 3000; ++i) {
    files_.contents(kShard) = mutator.mutate(shard_);
    ASSERT_FALSE(read_all(Verification::checksums)) << i;
  }
}

TEST_F(CheckpointDamage, MutatedMarkers) {
  Mutator mutator(2);
  for (int i = 0; i < 5000; ++i) {
    files_.contents(kMarker) = mutator.mutate(marker_);
    ASSERT_FALSE(read_all(Verification::sizes)) << i;
  }
}

// Somebody who changes a file can also make the marker fit: then nothing stands before the HDF5
// library but its own checksums, and before the rest of the reader nothing.
TEST_F(CheckpointDamage, MutatedShardsWithAFittingMarker) {
  Mutator mutator(3);
  int readable = 0;
  for (int i = 0; i < 3000; ++i) {
    std::vector<char>& contents = files_.contents(kShard);
    contents = mutator.mutate(shard_);
    CompletionMarker marker{20, 2, {}};
    marker.shards.push_back(
        {shard_file_name(0, 1), contents.size(), XXH3_64bits(contents.data(), contents.size())});
    const std::string text = encode_marker(marker);
    files_.contents(kMarker).assign(text.begin(), text.end());
    if (read_all(Verification::checksums)) ++readable;
  }
  EXPECT_LT(readable, 1500);  // gaps and unused bytes may change
}

// The same for the marker's text, whose checksum is made to fit.
TEST_F(CheckpointDamage, MutatedMarkersWithAFittingChecksum) {
  Mutator mutator(4);
  const std::string text(marker_.begin(), marker_.end());
  const std::string line = text.substr(0, text.find('\n'));
  for (int i = 0; i < 5000; ++i) {
    const std::vector<char> changed = mutator.mutate({line.begin(), line.end()});
    std::string forged(changed.begin(), changed.end());
    char checksum[32];
    std::snprintf(checksum, sizeof(checksum), "\nxxh3-64 %016llx\n",
                  static_cast<unsigned long long>(XXH3_64bits(forged.data(), forged.size())));
    forged += checksum;
    files_.contents(kMarker).assign(forged.begin(), forged.end());
    read_all(Verification::checksums);
  }
}

}  // namespace
}  // namespace chaski
