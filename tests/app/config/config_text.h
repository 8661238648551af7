#pragma once

#include <gtest/gtest.h>
#include <stdexcept>
#include <string>
#include <vector>

#include "app/config/config.h"

// Configs as text and what becomes of them, for the tests of the config.

namespace chaski {

inline const std::string kMinimalConfig = R"([model]
preset = "llama-9m"

[data]
train = "corpus.h5"

[schedule]
steps = 1000
)";

inline TrainConfig parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return parse_config(text, "run.toml", overrides);
}

// The error of a config that must be refused.
inline std::string error_of(const std::string& text,
                            const std::vector<std::string>& overrides = {}) {
  try {
    parse(text, overrides);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error for:\n" << text;
  return "";
}

inline std::string error_of_override(const std::string& override_text) {
  return error_of(kMinimalConfig, {override_text});
}

inline void expect_begins(const std::string& text, const std::string& beginning) {
  EXPECT_EQ(text.substr(0, beginning.size()), beginning) << text;
}

inline void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "not in: " << text << "\nlooked for: " << part;
}

}  // namespace chaski
