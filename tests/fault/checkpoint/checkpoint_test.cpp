#include <condition_variable>
#include <functional>
#include <gtest/gtest.h>
#include <hdf5.h>
#include <pthread.h>
#include <signal.h>
#include <thread>

#include "fault/checkpoint/directory.h"
#include "fault/checkpoint/marker.h"
#include "fault/checkpoint/reader.h"
#include "fault/checkpoint/shard.h"
#include "fault/checkpoint/writer.h"
#include "tests/fault/checkpoint/faulty_file_system.h"
#include "tests/fault/checkpoint/small_model.h"
#include "tests/fault/checkpoint/temporary_directory.h"

namespace chaski {
namespace {

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

class Checkpoint : public testing::Test {
 protected:
  void save(std::int64_t step, CheckpointWriterOptions options = {}) {
    CheckpointWriter writer("/c", options, files_);
    model_.fill(step);
    writer.save(model_.metadata(step), model_.weights(), model_.optimizer());
    writer.wait();
  }
  std::vector<std::int64_t> steps() {
    std::vector<std::int64_t> found;
    for (const auto& listing : find_checkpoints("/c", files_).complete)
      found.push_back(listing.step);
    return found;
  }

  FaultyFileSystem files_;
  SmallModel model_;
};

TEST_F(Checkpoint, RoundTrip) {
  save(123);
  const CheckpointReader reader("/c", Verification::checksums, files_);
  SmallModel other;
  EXPECT_EQ(other.read(reader), 123);
  EXPECT_TRUE(other.bytes() == SmallModel::bytes_at(123));

  const CheckpointMetadata expected = model_.metadata(123);
  const CheckpointMetadata& metadata = reader.metadata();
  EXPECT_EQ(metadata.updates, 61);
  EXPECT_EQ(metadata.seed, expected.seed);
  EXPECT_EQ(metadata.tokens_seen, expected.tokens_seen);
  EXPECT_EQ(metadata.config_toml, expected.config_toml);
  EXPECT_TRUE(metadata.model == expected.model);
  EXPECT_EQ(metadata.optimizer_name, "adamw");
  EXPECT_EQ(metadata.precision, expected.precision);
  EXPECT_EQ(metadata.tokenizer_fingerprint, expected.tokenizer_fingerprint);
  EXPECT_EQ(metadata.tokenizer_model, expected.tokenizer_model);
  EXPECT_EQ(metadata.versions, expected.versions);
  EXPECT_EQ(metadata.replicas, 2);
  EXPECT_EQ(metadata.stages, 1);
  EXPECT_EQ(metadata.threads, 3);
  EXPECT_EQ(read_whole_file(files_, "/c/latest", 99), "step-00000123\n");
}

TEST_F(Checkpoint, EqualContentsGiveEqualFiles) {
  save(1);
  const auto first = files_.contents("/c/step-00000001/shard-00000-of-00001.h5");
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // HDF5 keeps times in seconds
  save(1);
  EXPECT_TRUE(files_.contents("/c/step-00000001/shard-00000-of-00001.h5") == first);
}

TEST_F(Checkpoint, EmptyMetadataAndNoOptimizer) {
  CheckpointMetadata metadata;
  metadata.model = model_.config();
  CheckpointWriter writer("/c", {}, files_);
  writer.save(metadata, model_.weights(), {});
  writer.wait();
  const CheckpointReader reader("/c/latest", Verification::checksums, files_);
  EXPECT_FALSE(reader.has_optimizer());
  EXPECT_EQ(reader.metadata().config_toml, "");
  EXPECT_EQ(reader.metadata().tokenizer_model, "");
  IdleOptimizer optimizer(model_.optimizer());
  const std::string message = message_of([&] { reader.read_optimizer(optimizer); });
  EXPECT_NE(message.find("no optimizer, not of adamw"), std::string::npos) << message;
}

// The HDF5 library itself, with its own driver, reads what went through ours.
TEST_F(Checkpoint, IsAnOrdinaryHdf5File) {
  const TemporaryDirectory directory;
  CheckpointWriter writer(directory.path(), {});
  model_.fill(5);
  writer.save(model_.metadata(5), model_.weights(), model_.optimizer());
  writer.wait();
  const std::string path = directory.path() + "/step-00000005/shard-00000-of-00001.h5";
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  ASSERT_GE(file, 0);
  const Parameter& parameter = model_.weights().at("model.layers.1.mlp.down_proj.weight");
  const hid_t dataset = H5Dopen2(file, ("/weights/" + parameter.name).c_str(), H5P_DEFAULT);
  ASSERT_GE(dataset, 0);
  std::vector<float> values(static_cast<std::size_t>(parameter.shape.num_elements()));
  ASSERT_GE(H5Dread(dataset, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0);
  EXPECT_EQ(std::memcmp(values.data(), parameter.value.raw(), values.size() * sizeof(float)), 0);
  H5Dclose(dataset);
  H5Fclose(file);
}

TEST_F(Checkpoint, KeepsTheNewestAndMilestones) {
  CheckpointWriterOptions options;
  options.keep = 2;
  options.keep_every = 30;
  for (std::int64_t step = 10; step <= 80; step += 10) save(step, options);
  EXPECT_EQ(steps(), (std::vector<std::int64_t>{80, 70, 60, 30}));
  EXPECT_EQ(files_.list("/c").size(), 5U);
}

TEST_F(Checkpoint, NewestIsTheLastWrittenNotTheLargestStep) {
  for (const std::int64_t step : {100, 200, 50}) save(step);
  EXPECT_EQ(steps().front(), 50);
  EXPECT_EQ(resolve_checkpoint("/c", "auto", files_).checkpoint->step, 50);
  EXPECT_EQ(resolve_checkpoint("/c", "/c/step-00000200", files_).checkpoint->step, 200);
}

TEST_F(Checkpoint, NothingToResumeFrom) {
  EXPECT_FALSE(resolve_checkpoint("/none", "auto", files_).checkpoint);
  EXPECT_NE(message_of([&] { resolve_checkpoint("/c", "/none", files_); }).find("no such"),
            std::string::npos);
  files_.create_directory("/empty");
  EXPECT_THROW(find_checkpoint("/empty", Verification::sizes, files_), std::invalid_argument);
}

TEST_F(Checkpoint, OtherModelIsRefused) {
  save(1);
  const CheckpointReader reader("/c", Verification::checksums, files_);
  SmallModel larger(18);
  const std::string message = message_of([&] { reader.read_weights(larger.weights()); });
  EXPECT_NE(message.find("weights/model.embed_tokens.weight is f32 [17, 8], but f32 [18, 8]"),
            std::string::npos)
      << message;

  const auto device = Device::create_cpu(1);
  ParameterSet few(*device);
  few.add("model.norm.weight", ParameterKind::norm, -1, {8});
  few.allocate();
  EXPECT_NE(message_of([&] { reader.read_weights(few); }).find("which the model does not have"),
            std::string::npos);
  EXPECT_NO_THROW(reader.read_weights(few, Extent::stage));
  ParameterSet missing(*device);
  missing.add("model.extra.weight", ParameterKind::norm, -1, {8});
  missing.allocate();
  EXPECT_NE(message_of([&] { reader.read_weights(missing); }).find("holds no weights/model.extra"),
            std::string::npos);
  IdleOptimizer galore(model_.optimizer(), "galore");
  EXPECT_NE(
      message_of([&] { reader.read_optimizer(galore); }).find("optimizer adamw, not of galore"),
      std::string::npos);
}

// Every type there is comes back, and each is known by its name in any HDF5 tool.
TEST_F(Checkpoint, StateOfEveryType) {
  const auto device = Device::create_cpu(1);
  std::vector<Buffer> buffers;
  std::vector<NamedTensor> saved, read;
  for (const DType dtype : kDTypes) {
    for (std::vector<NamedTensor>* tensors : {&saved, &read}) {
      buffers.push_back(device->allocate(dtype, {5}, MemoryCategory::optimizer));
      tensors->push_back({name_of(dtype), buffers.back().tensor()});
    }
    std::memset(saved.back().tensor.raw(), 0x41 + static_cast<int>(dtype), 5);
  }
  CheckpointWriter writer("/c", {}, files_);
  writer.save(model_.metadata(1), model_.weights(), saved);
  writer.wait();
  IdleOptimizer optimizer(read);
  CheckpointReader("/c", Verification::checksums, files_).read_optimizer(optimizer);
  for (std::size_t i = 0; i < saved.size(); ++i) {
    const Tensor& tensor = saved[i].tensor;
    EXPECT_EQ(std::memcmp(read[i].tensor.raw(), tensor.raw(),
                          static_cast<std::size_t>(tensor.num_bytes())),
              0)
        << saved[i].name;
  }
}

// An optimizer asks for what it needs now, and is told of what is not there or does not fit.
TEST_F(Checkpoint, OptimizersFindTheirState) {
  class Asking : public IdleOptimizer {
   public:
    Asking(const std::string& name, const Tensor& tensor)
        : IdleOptimizer({{name, tensor}}), wanted_(name) {}
    void load(const StateSource& source) override {
      found = source.find(wanted_);
      IdleOptimizer::load(source);
    }
    std::optional<StateSource::Stored> found;

   private:
    std::string wanted_;
  };
  save(1);
  const CheckpointReader reader("/c", Verification::checksums, files_);
  const auto device = Device::create_cpu(1);
  const Buffer three = device->allocate(DType::f64, {3}, MemoryCategory::optimizer);
  Asking scores("scores", three.tensor());
  reader.read_optimizer(scores);
  ASSERT_TRUE(scores.found);
  EXPECT_EQ(scores.found->dtype, DType::f64);
  EXPECT_TRUE(scores.found->shape == Shape{3});

  Asking basis("basis", three.tensor());
  EXPECT_EQ(message_of([&] { reader.read_optimizer(basis); }),
            "/c/step-00000001: holds no optimizer/basis (needed: f64 [3])");
  EXPECT_FALSE(basis.found);
  Asking counts("counts", three.tensor());
  EXPECT_EQ(message_of([&] { reader.read_optimizer(counts); }),
            "/c/step-00000001: optimizer/counts is i32 [5], but f64 [3] is needed");
  Asking turned("scores", three.tensor().view({1, 3}));
  EXPECT_EQ(message_of([&] { reader.read_optimizer(turned); }),
            "/c/step-00000001: optimizer/scores is f64 [3], but f64 [1, 3] is needed");
}

// Checkpoints once did not tell updates from steps.
TEST_F(Checkpoint, WithoutAttributeUpdatesAreSteps) {
  const TemporaryDirectory directory;
  CheckpointWriter writer(directory.path(), {});
  writer.save(model_.metadata(8), model_.weights(), model_.optimizer());
  writer.wait();
  const std::string path = directory.path() + "/step-00000008/shard-00000-of-00001.h5";
  EXPECT_EQ(read_shard(posix_file_system(), path).metadata.updates, 4);
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  ASSERT_GE(file, 0);
  EXPECT_GE(H5Adelete(file, "updates"), 0);
  H5Fclose(file);
  EXPECT_EQ(read_shard(posix_file_system(), path).metadata.updates, 8);
}

TEST_F(Checkpoint, ImpossibleNumbersOfUpdatesAreRefused) {
  for (const std::int64_t updates : {-1, 2}) {
    CheckpointMetadata metadata = model_.metadata(1);
    metadata.updates = updates;
    CheckpointWriter writer("/c", {}, files_);
    writer.save(metadata, model_.weights(), {});
    writer.wait();
    EXPECT_NE(message_of([&] {
                const CheckpointReader reader("/c", Verification::checksums, files_);
              }).find("attribute updates: is not from 0 to step"),
              std::string::npos);
  }
}

class ForwardingFileSystem : public FileSystem {
 public:
  explicit ForwardingFileSystem(FileSystem& files) : files_(files) {}
  std::unique_ptr<File> open(const std::string& path) override { return files_.open(path); }
  std::unique_ptr<File> create(const std::string& path) override { return files_.create(path); }
  void create_directory(const std::string& path) override { files_.create_directory(path); }
  void rename(const std::string& a, const std::string& b) override { files_.rename(a, b); }
  void remove_file(const std::string& path) override { files_.remove_file(path); }
  void remove_directory(const std::string& path) override { files_.remove_directory(path); }
  std::vector<std::string> list(const std::string& path) override { return files_.list(path); }
  std::optional<FileStatus> status(const std::string& path) override { return files_.status(path); }
  void sync_directory(const std::string& path) override { files_.sync_directory(path); }
  std::uint64_t free_bytes(const std::string& path) override { return files_.free_bytes(path); }

 private:
  FileSystem& files_;
};

// Blocks in the middle of a save until it is told to go on.
class PausingFileSystem final : public ForwardingFileSystem {
 public:
  using ForwardingFileSystem::ForwardingFileSystem;
  void let_go() {
    const std::lock_guard lock(mutex_);
    go_ = true;
    condition_.notify_all();
  }
  std::unique_ptr<File> create(const std::string& path) override {
    std::unique_lock lock(mutex_);
    condition_.wait(lock, [&] { return go_; });
    return ForwardingFileSystem::create(path);
  }

 private:
  std::mutex mutex_;
  std::condition_variable condition_;
  bool go_ = false;
};

TEST_F(Checkpoint, TensorsMayChangeWhileTheyAreSaved) {
  PausingFileSystem pausing(files_);
  CheckpointWriter writer("/c", {}, pausing);
  model_.fill(1);
  writer.save(model_.metadata(1), model_.weights(), model_.optimizer());
  EXPECT_TRUE(writer.busy());
  EXPECT_NO_THROW(writer.check());
  writer.before_update();
  model_.fill(2);          // while nothing has been written yet
  writer.before_update();  // of another step: nothing is left to keep
  model_.fill(22);
  model_.fill(2);
  pausing.let_go();
  writer.save(model_.metadata(2), model_.weights(), model_.optimizer());  // waits for the first
  writer.before_update();
  model_.fill(3);
  writer.wait();
  EXPECT_FALSE(writer.busy());
  for (const std::int64_t step : {1, 2}) {
    const CheckpointReader reader("/c/step-0000000" + std::to_string(step), Verification::checksums,
                                  files_);
    EXPECT_EQ(model_.read(reader), step);
    EXPECT_TRUE(model_.bytes() == SmallModel::bytes_at(step));
  }
  const auto reports = writer.take_reports();
  ASSERT_EQ(reports.size(), 2U);
  EXPECT_EQ(reports[0].path, "/c/step-00000001");
  EXPECT_GT(reports[1].bytes, 0U);
  // Nothing had been read when the first update came: all had to be copied.
  const std::int64_t bytes = checkpoint_bytes_of(model_.weights(), model_.optimizer());
  EXPECT_EQ(bytes, static_cast<std::int64_t>(SmallModel::bytes_at(1).size()));
  EXPECT_GE(reports[0].copied_bytes, bytes);
  EXPECT_GT(reports[0].copy_seconds, 0.0);
  EXPECT_GE(reports[0].stall_seconds, reports[0].copy_seconds);
}

TEST_F(Checkpoint, ErrorsOfTheThreadAreTold) {
  CheckpointWriter writer("/c", {}, files_);
  files_.set_capacity(1000);
  model_.fill(1);
  writer.save(model_.metadata(1), model_.weights(), model_.optimizer());
  const std::string message = message_of([&] { writer.wait(); });
  EXPECT_NE(message.find("step 1 was not saved"), std::string::npos) << message;
  EXPECT_NE(message.find("No space left"), std::string::npos) << message;
  EXPECT_NE(message.find("\nhint: "), std::string::npos) << message;
  EXPECT_TRUE(files_.list("/c").empty());
  files_.set_capacity(1 << 30);
  EXPECT_NO_THROW(writer.wait());  // told once
  writer.save(model_.metadata(2), model_.weights(), model_.optimizer());
  writer.wait();
  EXPECT_EQ(steps(), std::vector<std::int64_t>{2});
}

// No thread can be started while it lives: none has an address space for such a stack.
class NoThreads {
 public:
  NoThreads() {
    pthread_getattr_default_np(&before_);
    pthread_attr_t impossible;
    pthread_attr_init(&impossible);
    pthread_attr_setstacksize(&impossible, std::size_t{1} << 60);
    pthread_setattr_default_np(&impossible);
    pthread_attr_destroy(&impossible);
  }
  ~NoThreads() {
    pthread_setattr_default_np(&before_);
    pthread_attr_destroy(&before_);
  }

 private:
  pthread_attr_t before_;
};

TEST_F(Checkpoint, WithoutThreadsASaveFailsAndTheNextOneWorks) {
  CheckpointWriter writer("/c", {}, files_);
  model_.fill(1);
  sigset_t before;
  pthread_sigmask(SIG_BLOCK, nullptr, &before);
  {
    const NoThreads no_threads;
    const std::string message =
        message_of([&] { writer.save(model_.metadata(1), model_.weights(), model_.optimizer()); });
    EXPECT_NE(message.find("step 1 was not saved: no thread can be started"), std::string::npos)
        << message;
  }
  sigset_t after;
  pthread_sigmask(SIG_BLOCK, nullptr, &after);
  for (const int number : {SIGINT, SIGTERM, SIGUSR1})
    EXPECT_EQ(sigismember(&before, number), sigismember(&after, number));
  EXPECT_FALSE(writer.busy());
  writer.before_update();
  EXPECT_NO_THROW(writer.wait());
  model_.fill(2);
  writer.save(model_.metadata(2), model_.weights(), model_.optimizer());
  writer.wait();
  EXPECT_EQ(steps(), std::vector<std::int64_t>{2});
}

TEST_F(Checkpoint, CopiesWithoutThreads) {
  PausingFileSystem pausing(files_);
  CheckpointWriterOptions options;
  options.copy_threads = 4;
  CheckpointWriter writer("/c", options, pausing);
  model_.fill(1);
  writer.save(model_.metadata(1), model_.weights(), model_.optimizer());
  {
    const NoThreads no_threads;
    writer.before_update();
  }
  model_.fill(2);
  pausing.let_go();
  writer.wait();
  const CheckpointReader reader("/c/step-00000001", Verification::checksums, files_);
  EXPECT_EQ(model_.read(reader), 1);
  EXPECT_TRUE(model_.bytes() == SmallModel::bytes_at(1));
}

TEST_F(Checkpoint, DirectoryThatVanishesIsMadeAgain) {
  CheckpointWriter writer("/c", {}, files_);
  files_.remove_directory("/c");
  writer.save(model_.metadata(1), model_.weights(), model_.optimizer());
  EXPECT_NO_THROW(writer.wait());
  EXPECT_EQ(steps(), std::vector<std::int64_t>{1});
}

TEST_F(Checkpoint, ShardsOfSeveralWriters) {
  CheckpointWriterOptions first;
  first.num_shards = 2;
  CheckpointWriterOptions second = first;
  second.shard = 1;
  SmallModel later;
  model_.fill(9);
  later.fill(9);
  // Each writer has a part of the tensors, as pipeline stages do.
  const std::size_t half = model_.optimizer().size() / 2;
  const std::vector<NamedTensor> front(model_.optimizer().begin(),
                                       model_.optimizer().begin() + static_cast<long>(half));
  const std::vector<NamedTensor> back(later.optimizer().begin() + static_cast<long>(half),
                                      later.optimizer().end());
  const auto device = Device::create_cpu(1);
  ParameterSet none(*device);
  CheckpointWriter a("/c", first, files_);
  CheckpointWriter b("/c", second, files_);
  b.save(model_.metadata(9), none, back);
  a.save(model_.metadata(9), model_.weights(), front);
  b.wait();
  a.wait();
  SmallModel read;
  EXPECT_EQ(read.read(CheckpointReader("/c", Verification::checksums, files_)), 9);
  EXPECT_TRUE(read.bytes() == SmallModel::bytes_at(9));
  EXPECT_EQ(
      files_.list("/c/step-00000009"),
      (std::vector<std::string>{"COMPLETE", "shard-00000-of-00002.h5", "shard-00001-of-00002.h5"}));
}

// State of the whole model, which every stage holds, is written once and read by each.
TEST_F(Checkpoint, StateOfTheWholeModelIsInTheFirstShard) {
  const auto device = Device::create_cpu(1);
  const Buffer sampler = device->allocate(DType::i64, {2}, MemoryCategory::optimizer);
  const Buffer own[] = {device->allocate(DType::f32, {1}, MemoryCategory::optimizer),
                        device->allocate(DType::f32, {1}, MemoryCategory::optimizer)};
  sampler.tensor().i64()[1] = 1LL << 40;
  const auto state_of = [&](int stage) -> std::vector<NamedTensor> {
    return {{.name = "sampler", .tensor = sampler.tensor(), .of_model = true},
            {"moment/" + std::to_string(stage), own[stage].tensor()}};
  };
  ParameterSet none(*device);
  for (const int shard : {1, 0}) {
    CheckpointWriterOptions options;
    options.num_shards = 2;
    options.shard = shard;
    CheckpointWriter writer("/c", options, files_);
    writer.save(model_.metadata(9), none, state_of(shard));
    writer.wait();
  }
  const CheckpointReader reader("/c", Verification::checksums, files_);
  EXPECT_EQ(reader.tensors().size(), 3U);
  EXPECT_EQ(reader.at("optimizer/sampler").shard, 0);
  for (const int stage : {0, 1}) {
    sampler.tensor().i64()[1] = 0;
    IdleOptimizer optimizer(state_of(stage));
    reader.read_optimizer(optimizer);
    EXPECT_EQ(sampler.tensor().i64()[1], 1LL << 40);
  }
}

TEST_F(Checkpoint, MissingShardTimesOut) {
  CheckpointWriterOptions options;
  options.num_shards = 2;
  options.shard_timeout_seconds = 0.05;
  EXPECT_NE(message_of([&] { save(1, options); }).find("was not written in time"),
            std::string::npos);
  EXPECT_TRUE(files_.list("/c").empty());
}

// Does something once, when the writer of shard 0 first looks for what became of shard 1.
class Meanwhile final : public ForwardingFileSystem {
 public:
  Meanwhile(FileSystem& files, std::function<void()> act)
      : ForwardingFileSystem(files), act_(std::move(act)) {}
  std::optional<FileStatus> status(const std::string& path) override {
    if (path == "/c/step-00000001.tmp/" + shard_report_name(1, 2)) std::exchange(act_, [] {})();
    return ForwardingFileSystem::status(path);
  }

 private:
  std::function<void()> act_;
};

class WithoutRoomForShard1 final : public ForwardingFileSystem {
 public:
  explicit WithoutRoomForShard1(
      FileSystem& files, std::function<void()> before = [] {})
      : ForwardingFileSystem(files), before_(std::move(before)) {}
  std::unique_ptr<File> create(const std::string& path) override {
    if (!path.ends_with("shard-00001-of-00002.h5")) return ForwardingFileSystem::create(path);
    before_();
    throw FileError(path + ": no room", ENOSPC);
  }

 private:
  std::function<void()> before_;
};

class OtherShard : public Checkpoint {
 protected:
  void SetUp() override {
    Checkpoint::SetUp();
    first_.num_shards = second_.num_shards = 2;
    second_.shard = 1;
  }
  // The error of shard 0's save, in the midst of which `act` is done.
  std::string error_with(const std::function<void()>& act) {
    Meanwhile files(files_, act);
    CheckpointWriter writer("/c", first_, files);
    writer.save(model_.metadata(1), model_.weights(), model_.optimizer());
    return message_of([&] { writer.wait(); });
  }
  void save_shard_1(FileSystem& files) {
    CheckpointWriter writer("/c", second_, files);
    writer.save(model_.metadata(1), model_.weights(), model_.optimizer());
    try {
      writer.wait();
    } catch (const std::runtime_error&) {
    }
  }
  CheckpointWriterOptions first_, second_;
};

TEST_F(OtherShard, ThatFailsEndsTheSave) {
  const std::string error = error_with([&] {
    WithoutRoomForShard1 files(files_);
    save_shard_1(files);
  });
  EXPECT_NE(error.find("shard-00001-of-00002.h5 could not be written: "), std::string::npos)
      << error;
  EXPECT_NE(error.find("no room"), std::string::npos) << error;
  EXPECT_TRUE(files_.list("/c").empty());
}

TEST_F(OtherShard, OfADirectoryThatVanishedEndsTheSave) {
  const std::string error = error_with([&] { remove_tree(files_, "/c"); });
  EXPECT_NE(error.find("shard-00000-of-00002.h5: vanished"), std::string::npos) << error;
}

// The one that commits has given up when the other finds that it cannot write.
TEST_F(OtherShard, ThatFailsLaterCanBeSavedAgain) {
  first_.shard_timeout_seconds = 0.05;
  error_with([] {});
  EXPECT_TRUE(files_.list("/c").empty());
  WithoutRoomForShard1 full(files_);
  save_shard_1(full);
  EXPECT_FALSE(files_.list("/c").empty());
  CheckpointWriter writer("/c", first_, files_);
  writer.clear_attempt(1);
  EXPECT_TRUE(files_.list("/c").empty());
  save_shard_1(files_);
  writer.save(model_.metadata(1), model_.weights(), model_.optimizer());
  EXPECT_NO_THROW(writer.wait());
  EXPECT_EQ(steps(), std::vector<std::int64_t>{1});
}

TEST_F(OtherShard, WhoseDirectoryIsGoneLeavesNothing) {
  WithoutRoomForShard1 full(files_, [&] { remove_tree(files_, "/c/step-00000001.tmp"); });
  save_shard_1(full);
  EXPECT_TRUE(files_.list("/c").empty());
}

TEST_F(OtherShard, InADirectoryMadeAgainIsNoCheckpoint) {
  const std::string error = error_with([&] {
    remove_tree(files_, "/c");
    save_shard_1(files_);
  });
  EXPECT_NE(error.find("shard-00000-of-00002.h5: vanished"), std::string::npos) << error;
  EXPECT_TRUE(files_.list("/c").empty());
}

TEST_F(Checkpoint, CleanUpTouchesOnlyItsOwnNames) {
  save(10);
  for (const std::string name : {"step-00000020.tmp", "notes", "step-20.tmp", "step-00000030"}) {
    files_.create_directory("/c/" + name);
    files_.create("/c/" + name + "/shard-00000-of-00001.h5");
  }
  files_.create("/c/latest.tmp");
  files_.create_directory("/c/step-00000040");
  files_.create("/c/step-00000040/something.txt");
  EXPECT_EQ(clean_up_checkpoints("/c", files_),
            (std::vector<std::string>{"latest.tmp", "step-00000020.tmp", "step-00000030"}));
  EXPECT_EQ(files_.list("/c"), (std::vector<std::string>{"latest", "notes", "step-00000010",
                                                         "step-00000040", "step-20.tmp"}));
  const ResolvedCheckpoint resolved = resolve_checkpoint("/c", "auto", files_);
  EXPECT_EQ(resolved.checkpoint->step, 10);
  ASSERT_EQ(resolved.skipped.size(), 1U);
  EXPECT_NE(resolved.skipped[0].reason.find("no file COMPLETE"), std::string::npos);
}

}  // namespace
}  // namespace chaski
