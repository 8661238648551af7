#include <cstdio>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "fault/checkpoint/directory.h"
#include "fault/checkpoint/reader.h"
#include "fault/checkpoint/writer.h"
#include "tests/fault/checkpoint/faulty_file_system.h"
#include "tests/fault/checkpoint/small_model.h"

namespace chaski {
namespace {

using Loss = FaultyFileSystem::Loss;
constexpr const char* kDirectory = "/run/checkpoints";

CheckpointWriterOptions synchronous(std::int64_t keep) {
  CheckpointWriterOptions options;
  options.keep = keep;
  options.async = false;
  return options;
}

void save(FaultyFileSystem& files, SmallModel& model, std::int64_t step, std::int64_t keep) {
  CheckpointWriter writer(kDirectory, synchronous(keep), files);
  model.fill(step);
  writer.save(model.metadata(step), model.weights(), model.optimizer());
}

// What `--resume auto` would start from; the contents must be those saved at that step.
std::int64_t resumed_step(FaultyFileSystem& files, SmallModel& model) {
  clean_up_checkpoints(kDirectory, files);
  const ResolvedCheckpoint resolved = resolve_checkpoint(kDirectory, "auto", files);
  if (!resolved.checkpoint) return -1;
  const CheckpointReader reader(resolved.checkpoint->path, Verification::sizes, files);
  const std::int64_t step = model.read(reader);
  EXPECT_EQ(step, resolved.checkpoint->step);
  EXPECT_TRUE(model.bytes() == SmallModel::bytes_at(step)) << "other contents than saved";
  return step;
}

TEST(FaultyFileSystem, LosesWhatWasNotSynced) {
  FaultyFileSystem files;
  files.create_directory("/a");
  files.sync_directory("/");
  const auto file = files.create("/a/x");
  file->write_at(0, "one", 3);
  file->sync();
  files.restart(Loss::all, 0);
  EXPECT_FALSE(files.status("/a/x"));  // the name was not synced

  const auto again = files.create("/a/x");
  again->write_at(0, "one", 3);
  again->sync();
  files.sync_directory("/a");
  again->write_at(0, "two", 3);
  files.rename("/a/x", "/a/y");
  files.restart(Loss::all, 0);
  EXPECT_EQ(read_whole_file(files, "/a/x", 10), "one");
  EXPECT_FALSE(files.status("/a/y"));
}

// For those who want to know what a passed test has tried (`ctest -V`).
void tell_count(std::int64_t count, const std::string& what) {
  fmt::print("{:>8} {}\n", count, what);
  std::fflush(stdout);
}

struct Scenario {
  const char* name;
  std::vector<std::int64_t> before;  // steps saved in full
  std::int64_t step;                 // the save that is stopped
  std::int64_t keep;
};

// Stops a save before each of its file operations in turn, with every kind of loss, and then
// resumes: always from the checkpoint before or from the new one, and never from something older.
void stop_everywhere(const Scenario& scenario, int random_losses) {
  SCOPED_TRACE(scenario.name);
  SmallModel model;
  FaultyFileSystem prepared;
  for (const std::int64_t step : scenario.before) save(prepared, model, step, scenario.keep);
  int points = 0;
  bool finished = false;
  for (std::int64_t stop = 0; !finished; ++stop) {
    for (int loss = 0; loss < 2 + random_losses; ++loss) {
      SCOPED_TRACE(testing::Message() << "operation " << stop << ", loss " << loss);
      FaultyFileSystem files(prepared);
      files.stop_after(stop);
      finished = true;
      try {
        save(files, model, scenario.step, scenario.keep);
      } catch (const std::runtime_error&) {
        finished = false;
      }
      const Loss kind = loss == 0 ? Loss::all : loss == 1 ? Loss::none : Loss::random;
      files.restart(kind, static_cast<std::uint64_t>(stop * 100 + loss));
      const std::int64_t step = resumed_step(files, model);
      const std::int64_t previous = scenario.before.empty() ? -1 : scenario.before.back();
      if (finished)
        ASSERT_EQ(step, scenario.step);
      else
        ASSERT_TRUE(step == scenario.step || step == previous) << step;
      save(files, model, scenario.step + 100, scenario.keep);
      ASSERT_EQ(resumed_step(files, model), scenario.step + 100);
      for (const std::string& name : files.list(kDirectory))
        ASSERT_TRUE(name == "latest" || (name.size() == 13 && name.rfind("step-", 0) == 0)) << name;
      ++points;
    }
  }
  EXPECT_GE(points, 200);
  tell_count(points, fmt::format("crash points of \"{}\"", scenario.name));
}

TEST(CheckpointCrash, NextSave) {
  stop_everywhere({"next save", {10, 20}, 30, 2}, 4);
}
TEST(CheckpointCrash, FirstSave) {
  stop_everywhere({"first save", {}, 10, 3}, 2);
}
// Resumed from step 10 although 20 was there: the same step again takes its place.
TEST(CheckpointCrash, SameStepAgain) {
  stop_everywhere({"again", {10, 20}, 20, 1}, 3);
}
// Resumed from an older checkpoint: the new one is the newest although its step is not the largest.
TEST(CheckpointCrash, OlderStep) {
  stop_everywhere({"older", {10, 30}, 20, 3}, 2);
}

TEST(CheckpointCrash, ManyRandomStopsInARow) {
  SmallModel model;
  FaultyFileSystem files;
  std::mt19937_64 random(7);
  std::int64_t newest = -1;
  for (std::int64_t step = 1; step <= 300; ++step) {
    files.stop_after(static_cast<std::int64_t>(random() % 120));
    bool saved = true;
    try {
      save(files, model, step, 2);
    } catch (const std::runtime_error&) {
      saved = false;
    }
    files.restart(random() % 3 == 0 ? Loss::all : Loss::random, random());
    const std::int64_t resumed = resumed_step(files, model);
    ASSERT_TRUE(resumed == step || (!saved && resumed == newest)) << resumed;
    newest = resumed;
  }
}

// An operation that fails without the process dying: the error is told, the rest goes on.
TEST(CheckpointCrash, OneFailingOperation) {
  SmallModel model;
  bool failed = true;
  std::int64_t operation = 0;
  for (; failed; ++operation) {
    SCOPED_TRACE(operation);
    FaultyFileSystem files;
    save(files, model, 10, 2);
    CheckpointWriter writer(kDirectory, synchronous(2), files);
    files.fail_once_after(operation);
    failed = false;
    try {
      model.fill(20);
      writer.save(model.metadata(20), model.weights(), model.optimizer());
    } catch (const std::runtime_error& error) {
      failed = true;
      EXPECT_NE(std::string(error.what()).find("of step 20 was "), std::string::npos);
      EXPECT_NE(std::string(error.what()).find("Input/output error"), std::string::npos);
    }
    const auto found = resolve_checkpoint(kDirectory, "auto", files);
    ASSERT_TRUE(found.checkpoint && found.checkpoint->step >= 10);
    files.restart(Loss::none, 0);  // no more faults
    model.fill(30);
    writer.save(model.metadata(30), model.weights(), model.optimizer());
    ASSERT_EQ(resumed_step(files, model), 30);
  }
  tell_count(operation - 1, "operations failed in turn");
}

TEST(CheckpointCrash, FullDiskAtEverySize) {
  SmallModel model;
  FaultyFileSystem files;
  save(files, model, 10, 1);
  const std::uint64_t one = find_checkpoints(kDirectory, files).complete.front().bytes;
  bool full = true;
  std::int64_t sizes = 0;
  for (std::uint64_t extra = 0; full; extra += one / 16) {
    SCOPED_TRACE(extra);
    FaultyFileSystem disk;
    save(disk, model, 10, 1);
    disk.set_capacity(one + 400 + extra);
    full = false;
    try {
      save(disk, model, 20, 1);
    } catch (const std::runtime_error& error) {
      full = true;
      EXPECT_NE(std::string(error.what()).find("No space left"), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("MiB free"), std::string::npos);
      EXPECT_EQ(read_whole_file(disk, "/run/checkpoints/latest", 99), "step-00000010\n");
    }
    sizes += full;
    ASSERT_EQ(resumed_step(disk, model), full ? 10 : 20);
    ASSERT_EQ(disk.list(kDirectory).size(), 2U);  // what was written of the failed one is gone
  }
  tell_count(sizes, "sizes of a full disk");
}

}  // namespace
}  // namespace chaski
