#include <fmt/format.h>
#include <gtest/gtest.h>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "app/config/config.h"
#include "tests/app/config/config_text.h"

namespace chaski {
namespace {

TEST(Layout, DividesTheRows) {
  const auto config = parse(kMinimalConfig, {"parallel.micro_batch=4", "parallel.global_batch=48"});
  for (const auto& [processes, micro_batches] :
       std::vector<std::pair<int, int>>{{1, 12}, {2, 6}, {3, 4}, {4, 3}, {12, 1}}) {
    const RunLayout layout = resolve_layout(config, processes);
    EXPECT_EQ(layout.num_replicas, processes);
    EXPECT_EQ(layout.num_stages, 1);
    EXPECT_EQ(layout.micro_batches, micro_batches);
  }
}

TEST(Layout, PassesAreEvenAndOnlyWhereTheModelIsWhole) {
  const auto passes = [](std::int64_t rows, std::int64_t length, std::int64_t tokens, int stages) {
    const Passes result = passes_of(rows, length, tokens, stages);
    return std::pair(result.rows, result.count);
  };
  using Pair = std::pair<std::int64_t, int>;
  EXPECT_EQ(passes(8, 256, 512, 1), Pair(2, 4));
  EXPECT_EQ(passes(8, 256, 1000, 1), Pair(3, 3));  // 3, 3 and 2 rows
  EXPECT_EQ(passes(9, 256, 2048, 1), Pair(5, 2));  // not 8 and 1
  EXPECT_EQ(passes(4, 1024, 512, 1), Pair(1, 4));  // a row at least
  EXPECT_EQ(passes(2, 64, 512, 1), Pair(2, 1));
  EXPECT_EQ(passes(8, 256, 0, 1), Pair(8, 1));
  EXPECT_EQ(passes(8, 256, 512, 2), Pair(8, 1));
}

std::string layout_error(const TrainConfig& config, int processes) {
  try {
    resolve_layout(config, processes);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST(Layout, PipelinesTakeTheirShareOfTheProcesses) {
  const auto config = parse(kMinimalConfig, {"parallel.pipeline=2", "parallel.global_batch=16"});
  const RunLayout layout = resolve_layout(config, 4);
  EXPECT_EQ(layout.num_replicas, 2);
  EXPECT_EQ(layout.num_stages, 2);
  EXPECT_EQ(layout.micro_batches, 1);
}

TEST(Layout, RefusesWhatDoesNotFit) {
  const auto by_rows =
      parse(kMinimalConfig, {"parallel.micro_batch=4", "parallel.global_batch=48"});
  expect_begins(layout_error(by_rows, 5),
                "parallel.global_batch is 48 but must be a multiple of "
                "micro_batch × replicas = 4 × 5 = 20\nhint: for example "
                "parallel.global_batch = 60");
  const auto fixed = parse(kMinimalConfig, {"parallel.data=2", "parallel.global_batch=16"});
  expect_begins(layout_error(fixed, 1),
                "parallel.data is 2 but 1 process was started: data × "
                "pipeline = 2 × 1 needs 2\nhint: start it with mpirun -n 2");
  expect_begins(layout_error(fixed, 4), "parallel.data is 2 but 4 processes were started");
  const auto stages = parse(kMinimalConfig, {"parallel.pipeline=2"});
  expect_begins(layout_error(stages, 3),
                "parallel.pipeline is 2 but 3 processes were started: data "
                "× pipeline = 1 × 2 needs 2");
  expect_begins(layout_error(stages, 1), "parallel.pipeline is 2 but 1 process was started");
}

}  // namespace
}  // namespace chaski
