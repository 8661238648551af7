#include <filesystem>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "fault/checkpoint/directory.h"
#include "fault/checkpoint/reader.h"
#include "fault/checkpoint/writer.h"
#include "tests/fault/checkpoint/small_model.h"
#include "tests/fault/checkpoint/temporary_directory.h"

namespace chaski {
namespace {

// A small file system of its own, where the rights suffice to mount one.
class Tmpfs {
 public:
  Tmpfs(const std::string& path, const std::string& size)
      : path_(path),
        mounted_(::mount("tmpfs", path.c_str(), "tmpfs", 0, ("size=" + size).c_str()) == 0) {}
  ~Tmpfs() {
    if (mounted_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  Tmpfs(const Tmpfs&) = delete;
  Tmpfs& operator=(const Tmpfs&) = delete;
  bool mounted() const { return mounted_; }
  bool make_read_only() {
    return ::mount("tmpfs", path_.c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, nullptr) == 0;
  }

 private:
  std::string path_;
  bool mounted_;
};

std::string error_of_save(CheckpointWriter& writer, SmallModel& model, std::int64_t step) {
  try {
    model.fill(step);
    writer.save(model.metadata(step), model.weights(), model.optimizer());
    writer.wait();
    return "no error";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

TEST(RealFileSystem, FullDisk) {
  const TemporaryDirectory directory;
  const Tmpfs disk(directory.path(), "128k");
  if (!disk.mounted()) GTEST_SKIP() << "no right to mount a file system";
  SmallModel model;
  CheckpointWriter writer(directory.path() + "/checkpoints", {});
  std::int64_t step = 1;
  std::string error;
  while ((error = error_of_save(writer, model, step)) == "no error") ++step;
  ASSERT_GE(step, 2);
  EXPECT_NE(error.find(directory.path()), std::string::npos) << error;
  EXPECT_NE(error.find("No space left on device"), std::string::npos) << error;
  EXPECT_NE(error.find("MiB free"), std::string::npos) << error;
  const std::string checkpoints = directory.path() + "/checkpoints";
  const ResolvedCheckpoint resolved = resolve_checkpoint(checkpoints, "auto");
  ASSERT_TRUE(resolved.checkpoint);
  EXPECT_EQ(resolved.checkpoint->step, step - 1);
  EXPECT_TRUE(resolved.skipped.empty());
  EXPECT_EQ(model.read(CheckpointReader(directory.path())), step - 1);
  EXPECT_TRUE(model.bytes() == SmallModel::bytes_at(step - 1));
}

TEST(RealFileSystem, ReadOnlyDirectory) {
  const TemporaryDirectory directory;
  Tmpfs disk(directory.path(), "1m");
  if (!disk.mounted()) GTEST_SKIP() << "no right to mount a file system";
  SmallModel model;
  CheckpointWriter writer(directory.path() + "/checkpoints", {});
  ASSERT_EQ(error_of_save(writer, model, 1), "no error");
  ASSERT_TRUE(disk.make_read_only());
  EXPECT_NE(error_of_save(writer, model, 2).find("Read-only file system"), std::string::npos);
  EXPECT_EQ(resolve_checkpoint(directory.path() + "/checkpoints", "auto").checkpoint->step, 1);
  EXPECT_THROW(CheckpointWriter(directory.path() + "/others", {}), std::runtime_error);
}

// A write beyond the limit of a file's size fails in the middle of HDF5's own writes; the library
// must neither keep the file open nor write again when the program ends.
TEST(RealFileSystem, FileSizeLimit) {
  const TemporaryDirectory directory;
  SmallModel model;
  CheckpointWriter writer(directory.path(), {});
  ASSERT_EQ(error_of_save(writer, model, 1), "no error");
  const auto open_files = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
  };
  const auto before = open_files();
  struct rlimit limit {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &limit), 0);
  const struct rlimit small { 8192, limit.rlim_max };
  ::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string error = error_of_save(writer, model, 2);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  EXPECT_NE(error.find("File too large"), std::string::npos) << error;
  EXPECT_EQ(open_files(), before);
  EXPECT_EQ(error_of_save(writer, model, 3), "no error");
}

TEST(RealFileSystem, AHundredSavesLeakNothing) {
  const TemporaryDirectory directory;
  SmallModel model;
  CheckpointWriterOptions options;
  options.keep = 2;
  CheckpointWriter writer(directory.path(), options);
  const auto open_files = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
  };
  ASSERT_EQ(error_of_save(writer, model, 1), "no error");
  const auto before = open_files();
  for (std::int64_t step = 2; step <= 100; ++step)
    ASSERT_EQ(error_of_save(writer, model, step), "no error");
  EXPECT_EQ(open_files(), before);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory.path()), {}), 3);
}

}  // namespace
}  // namespace chaski
