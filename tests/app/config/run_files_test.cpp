#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "app/config/config.h"
#include "tests/app/config/config_text.h"

namespace chaski {
namespace {

class FilesOfAConfig : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/chaski-config-test-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
    for (const char* file : {"b.h5", "a.h5", "c.model"}) std::ofstream(folder_ / file) << "x";
    std::filesystem::create_directory(folder_ / "sub");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  RunFiles resolve(const std::vector<std::string>& overrides) {
    return resolve_files(parse(kMinimalConfig, overrides));
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string error(const std::vector<std::string>& overrides) {
    try {
      resolve(overrides);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  }

  std::filesystem::path folder_;
};

TEST_F(FilesOfAConfig, GlobsAreSortedAndFilesNamedOnce) {
  const RunFiles files =
      resolve({fmt::format("data.train=['{}', '{}']", path("b.h5"), path("*.h5")),
               "data.tokenizer=" + path("c.model")});
  EXPECT_EQ(files.train, (std::vector<std::string>{path("b.h5"), path("a.h5")}));
  EXPECT_TRUE(files.validation.empty());
}

TEST_F(FilesOfAConfig, MissingOnesAreNamedWithTheirKey) {
  const std::string good = "data.train=" + path("a.h5");
  expect_begins(error({"data.train=" + path("z.h5")}),
                "data.train names " + path("z.h5") + ": no such file\nhint: ");
  expect_begins(error({"data.train=" + path("z*.h5")}),
                "data.train names " + path("z*.h5") + ", which matches no file");
  expect_begins(error({"data.train=" + path("sub")}), "data.train names " + path("sub") +
                                                          ", which "
                                                          "is a folder");
  expect_begins(error({good, "data.validation=" + path("v.h5")}), "data.validation names ");
  expect_begins(error({good, "data.tokenizer=" + path("t.model")}), "data.tokenizer names ");
  expect_begins(error({good, "run.output=" + path("a.h5")}), "run.output is ");
}

}  // namespace
}  // namespace chaski
