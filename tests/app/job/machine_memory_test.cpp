#include "app/job/machine_memory.h"

#include <fstream>
#include <gtest/gtest.h>

#include "app/plan/memory_check.h"
#include "tests/fault/checkpoint/temporary_directory.h"

namespace chaski {
namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

// A machine of 16 GiB and 2 GiB of swap.
class MachineMemoryTest : public testing::Test {
 protected:
  MachineMemoryTest() {
    write("proc/meminfo",
          "MemTotal:       16777216 kB\nMemFree:        1 kB\nSwapTotal:       2097152 kB\n");
  }
  void write(const std::string& name, const std::string& text) const {
    const std::filesystem::path path = std::filesystem::path(root_.path()) / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  MachineMemory memory() const { return machine_memory(root_.path()); }

  TemporaryDirectory root_;
};

TEST_F(MachineMemoryTest, IsAllWhereNothingLimitsIt) {
  for (const char* group : {"", "0::/\n", "garbage\n12:cpu:/jobs\n"}) {
    write("proc/self/cgroup", group);
    EXPECT_EQ(memory().bytes, 16 * kGiB);
    EXPECT_EQ(memory().swap_bytes, 2 * kGiB);
    EXPECT_FALSE(memory().limited);
  }
}

TEST_F(MachineMemoryTest, IsTheLeastOfTheGroupsOnTheWay) {
  write("proc/self/cgroup", "0::/jobs/7\n");
  write("sys/fs/cgroup/jobs/7/memory.max", "max\n");
  write("sys/fs/cgroup/jobs/memory.max", "4294967296\n");
  write("sys/fs/cgroup/jobs/memory.swap.max", "0\n");
  EXPECT_EQ(memory().bytes, 4 * kGiB);
  EXPECT_EQ(memory().swap_bytes, 0);
  EXPECT_TRUE(memory().limited);
  write("sys/fs/cgroup/jobs/7/memory.max", "1073741824\n");
  EXPECT_EQ(memory().bytes, kGiB);
}

// The path is the host's; what is mounted is the container's own group.
TEST_F(MachineMemoryTest, OfAContainer) {
  write("proc/self/cgroup", "0::/../../system.slice/docker-1234.scope\n");
  write("sys/fs/cgroup/memory.max", "2147483648\n");
  EXPECT_EQ(memory().bytes, 2 * kGiB);
}

TEST_F(MachineMemoryTest, OfGroupsOfVersionOne) {
  write("proc/self/cgroup", "11:memory:/job\n3:cpu,cpuacct:/\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "3221225472\n");
  write("sys/fs/cgroup/memory/job/memory.memsw.limit_in_bytes", "4294967296\n");
  EXPECT_EQ(memory().bytes, 3 * kGiB);
  EXPECT_EQ(memory().swap_bytes, kGiB);
}

TEST_F(MachineMemoryTest, LimitsAboveTheMachineAreNone) {
  write("proc/self/cgroup", "0::/\n");
  write("sys/fs/cgroup/memory.max", "99999999999\n");
  EXPECT_EQ(memory().bytes, 16 * kGiB);
  EXPECT_FALSE(memory().limited);
}

TEST(MachineMemory, IsUnknownWhereTheSystemDoesNotTell) {
  EXPECT_FALSE(machine_memory("/nonexistent").known());
}

TEST(MemoryCheck, LeastBytesOfAProcessDoNotOverflow) {
  TrainConfig config;
  config.model.llama = llama_preset("llama-9m");
  config.data.sequence_length = 100;
  config.parallel.micro_batch = 8;
  config.device.tokens_per_pass = 200;
  const auto parameters = static_cast<double>(config.model.llama.num_parameters());
  const RunLayout layout{.num_replicas = 1, .num_stages = 1, .micro_batches = 3};
  // State; three micro-batches of tokens and targets; two rows of a pass.
  EXPECT_DOUBLE_EQ(least_bytes_of_process(config, layout, 0),
                   16 * parameters + 3 * 800 * 8 + 200 * 128 * 4);
  config.data.sequence_length = 1 << 26;
  config.parallel.micro_batch = 1000000;
  config.device.tokens_per_pass = 0;
  const RunLayout vast{.num_replicas = 1, .num_stages = 1, .micro_batches = 1 << 30};
  EXPECT_GT(least_bytes_of_process(config, vast, 0), 5e23);
  LlamaConfig& model = config.model.llama;
  model.num_layers = model.hidden_size = model.intermediate_size = 1'000'000'000;
  EXPECT_GT(least_bytes_of_process(config, layout, 0), 16 * 3e27);
}

// A vocabulary is on the first and on the last stage alone; the stages together hold the model.
TEST(MemoryCheck, LeastBytesAreOfTheProcessesOwnStage) {
  TrainConfig config;
  LlamaConfig& model = config.model.llama;
  model = llama_preset("llama-9m");
  model.vocab_size = 1000000;
  const RunLayout layout{.num_replicas = 1, .num_stages = 4, .micro_batches = 1};
  const RunLayout whole{.num_replicas = 1, .num_stages = 1, .micro_batches = 1};
  double sum = 0.0;
  for (int stage = 0; stage < 4; ++stage) sum += least_bytes_of_process(config, layout, stage);
  const double beside =
      least_bytes_of_process(config, whole, 0) - 16.0 * static_cast<double>(model.num_parameters());
  EXPECT_DOUBLE_EQ(sum - 4 * beside, 16.0 * static_cast<double>(model.num_parameters()));
  const double middle = least_bytes_of_process(config, layout, 1);
  EXPECT_DOUBLE_EQ(middle - beside, 16.0 * static_cast<double>(model.num_layer_parameters()));
  EXPECT_LT(middle, 0.01 * least_bytes_of_process(config, layout, 0));
}

}  // namespace
}  // namespace chaski
