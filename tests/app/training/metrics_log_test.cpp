#include "app/training/metrics_log.h"

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <sys/resource.h>
#include <vector>

namespace chaski {
namespace {

class MetricsLogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/chaski-metrics-test-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
    path_ = folder_ / "run" / "metrics.jsonl";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string text() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::vector<nlohmann::json> entries() const {
    std::vector<nlohmann::json> all;
    std::ifstream file(path_);
    for (std::string line; std::getline(file, line);) all.push_back(nlohmann::json::parse(line));
    return all;
  }
  void put(const std::string& content) const {
    std::filesystem::create_directories(path_.parent_path());
    std::ofstream(path_, std::ios::binary) << content;
  }
  static StepMetrics at(std::int64_t step) {
    StepMetrics metrics;
    metrics.step = step;
    metrics.loss = 2.5;
    metrics.lr = 1e-3;
    metrics.grad_norm = 0.75;
    metrics.tokens = 2048 * step;
    metrics.tokens_per_second = 1000;
    metrics.seconds = 2.048;
    return metrics;
  }

  std::filesystem::path folder_, path_;
};

TEST_F(MetricsLogTest, WritesOneObjectALine) {
  MetricsLog log(path_, 0);
  StepMetrics second = at(2);
  second.extras["validation_loss"] = 3.25;
  log.write(at(1));
  log.write(second);
  // Readable while the run goes on.
  EXPECT_EQ(text(),
            "{\"step\":1,\"loss\":2.5,\"lr\":0.001,\"grad_norm\":0.75,\"tokens\":2048,"
            "\"tokens_per_second\":1000.0,\"seconds\":2.048}\n"
            "{\"step\":2,\"loss\":2.5,\"lr\":0.001,\"grad_norm\":0.75,\"tokens\":4096,"
            "\"tokens_per_second\":1000.0,\"seconds\":2.048,\"validation_loss\":3.25}\n");
}

TEST_F(MetricsLogTest, NonFiniteNumbersBecomeNull) {
  MetricsLog log(path_, 0);
  StepMetrics metrics = at(1);
  metrics.loss = std::numeric_limits<double>::quiet_NaN();
  metrics.grad_norm = std::numeric_limits<double>::infinity();
  metrics.extras["validation_loss"] = std::numeric_limits<double>::quiet_NaN();
  log.write(metrics);
  const auto entry = entries().at(0);
  EXPECT_TRUE(entry["loss"].is_null());
  EXPECT_TRUE(entry["grad_norm"].is_null());
  EXPECT_TRUE(entry["validation_loss"].is_null());
}

TEST_F(MetricsLogTest, ResumeDropsLaterEntries) {
  {
    MetricsLog log(path_, 0);
    for (int step = 1; step <= 9; ++step) log.write(at(step));
  }
  MetricsLog log(path_, 6);
  log.write(at(7));
  const auto all = entries();
  ASSERT_EQ(all.size(), 7u);
  for (std::size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i]["step"], i + 1);
  EXPECT_FALSE(std::filesystem::exists(path_.string() + ".tmp"));
}

TEST_F(MetricsLogTest, ResumeAtTheEndKeepsTheFileAsItIs) {
  put("{\"step\": 1, \"own\": [1,2]}\n{\"step\":2}\n");
  const std::string before = text();
  { MetricsLog log(path_, 2); }
  EXPECT_EQ(text(), before);
}

TEST_F(MetricsLogTest, ANewRunStartsAnEmptyFile) {
  put("{\"step\":1}\n{\"step\":2}\n");
  MetricsLog log(path_, 0);
  EXPECT_EQ(text(), "");
}

TEST_F(MetricsLogTest, CutOffAndForeignLinesAreDropped) {
  put("{\"step\":1}\nnot json\n[3]\n{\"loss\":1}\n{\"step\":2}\n{\"step\":3,\"lo");
  MetricsLog log(path_, 5);
  log.write(at(3));
  const auto all = entries();
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0]["step"], 1);
  EXPECT_EQ(all[1]["step"], 2);
  EXPECT_EQ(all[2]["step"], 3);
}

TEST_F(MetricsLogTest, ALineWithoutItsEndIsNotContinued) {
  put("{\"step\":1}\n{\"step\":2}");
  MetricsLog log(path_, 2);
  log.write(at(3));
  EXPECT_EQ(entries().size(), 2u);
}

// The limit on a file's size stands in for a full disk: write() fails after a part of the line.
TEST_F(MetricsLogTest, AFullDiskLosesLinesButNothingElse) {
  MetricsLog log(path_, 0);
  // Long enough for the captured warning to fit the same limit.
  for (int step = 1; step <= 20; ++step) log.write(at(step));
  const std::string before = text();
  const auto previous = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  const rlimit small{before.size() + 10, limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  testing::internal::CaptureStderr();
  log.write(at(21));
  log.write(at(22));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  std::signal(SIGXFSZ, previous);
  const std::string warnings = testing::internal::GetCapturedStderr();
  EXPECT_EQ(text(), before);
  EXPECT_EQ(log.lines_lost(), 2);
  EXPECT_EQ(warnings.find("chaski: warning: " + path_.string()), 0u) << warnings;
  EXPECT_EQ(warnings.find('\n'), warnings.size() - 1) << "one warning only: " << warnings;
  log.write(at(23));
  EXPECT_EQ(entries().size(), 21u);
}

TEST_F(MetricsLogTest, ARotatedOrVanishedFileIsFollowedByANewOne) {
  MetricsLog log(path_, 0);
  log.write(at(1));
  const auto rotated = path_.string() + ".1";
  std::filesystem::rename(path_, rotated);
  log.write(at(2));
  log.write(at(3));
  EXPECT_EQ(entries().size(), 2u);
  EXPECT_EQ(entries()[0]["step"], 2);
  std::filesystem::remove_all(path_.parent_path());
  log.write(at(4));
  ASSERT_EQ(entries().size(), 1u);
  EXPECT_EQ(entries()[0]["step"], 4);
}

TEST_F(MetricsLogTest, AFileThatCannotBeOpenedIsAnError) {
  put("x");
  EXPECT_THROW(MetricsLog(path_ / "below-a-file" / "m.jsonl", 0), std::runtime_error);
  EXPECT_THROW(MetricsLog(folder_, 0), std::runtime_error);
}

}  // namespace
}  // namespace chaski
