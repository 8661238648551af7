#include "app/console/option_checks.h"

#include <gtest/gtest.h>
#include <map>
#include <string>

namespace chaski {
namespace {

TEST(OptionChecks, WholeNumbersFromALeastOneOn) {
  const OptionCheck check = whole_number_from(1);
  for (const char* good : {"1", "7", "2147483647"}) EXPECT_EQ(check(good), "") << good;
  EXPECT_EQ(check("0"), "must be a whole number of at least 1, not '0'");
  for (const char* bad : {"-3", "many", "", "1.5", "1e3", "nan", "inf", "0x10", "010", "+1", " 1",
                          "1 ", "-", "99999999999999999999"}) {
    EXPECT_EQ(check(bad), std::string("must be a whole number of at least 1, not '") + bad + "'");
  }
  EXPECT_EQ(check("2147483648"), "must be a whole number from 1 to 2147483647, not '2147483648'");
  EXPECT_EQ(whole_number_from(0)("0"), "");
}

TEST(OptionChecks, WholeNumbersBetweenTwo) {
  const OptionCheck check = whole_number_between(-2, 4096);
  for (const char* good : {"-2", "0", "4096"}) EXPECT_EQ(check(good), "") << good;
  for (const char* bad : {"-3", "4097", "-02", "x"}) {
    EXPECT_EQ(check(bad), std::string("must be a whole number from -2 to 4096, not '") + bad + "'");
  }
}

TEST(OptionChecks, NumbersAreFinite) {
  const OptionCheck check = number_from(0);
  for (const char* good : {"0", "0.6", "1e-3", "12"}) EXPECT_EQ(check(good), "") << good;
  for (const char* bad : {"nan", "inf", "-0.1", "1e999", "", "2s", "-inf"}) {
    EXPECT_EQ(check(bad), std::string("must be a number of at least 0, not '") + bad + "'");
  }
}

TEST(OptionChecks, PositiveNumbers) {
  const OptionCheck check = positive_number();
  for (const char* good : {"1e-9", "989.5"}) EXPECT_EQ(check(good), "") << good;
  for (const char* bad : {"0", "-1", "nan", "inf", ""}) {
    EXPECT_EQ(check(bad), std::string("must be a number above 0, not '") + bad + "'");
  }
}

TEST(OptionChecks, OneOfSeveralNames) {
  const OptionCheck check = one_of({"red", "blue"});
  EXPECT_EQ(check("blue"), "");
  EXPECT_EQ(check("Blue"), "must be one of red, blue, not 'Blue'");
  EXPECT_EQ(choices_text({"red", "blue"}), "{red,blue}");
}

TEST(OptionChecks, SizesAboveNothing) {
  std::string size = "80GiB";
  EXPECT_EQ(to_positive_bytes(size), "");
  EXPECT_EQ(size, "85899345920");
  for (std::string bad : {"0", "0 GB", "0.1"}) {
    EXPECT_EQ(to_positive_bytes(bad), "must be a size above 0, not '" + bad + "'");
  }
  size = "much";
  EXPECT_NE(to_positive_bytes(size).find("must be a size such as"), std::string::npos);
}

TEST(OptionChecks, SizesBecomeBytes) {
  const std::map<std::string, std::string> good = {{"0", "0"},
                                                   {"512", "512"},
                                                   {"7B", "7"},
                                                   {"500 MB", "500000000"},
                                                   {"2k", "2000"},
                                                   {"3KiB", "3072"},
                                                   {"1.5GiB", "1610612736"},
                                                   {"80gib", "85899345920"},
                                                   {"1TB", "1000000000000"}};
  for (const auto& [text, bytes] : good) {
    std::string value = text;
    EXPECT_EQ(to_bytes(value), "") << text;
    EXPECT_EQ(value, bytes) << text;
  }
  for (const char* bad : {"", "nonsense", "GiB", "-1", "1.2.3", "5 XB", "5iB", "1GiBx", "9e18",
                          "99999999TB", "nan"}) {
    std::string value = bad;
    EXPECT_EQ(to_bytes(value),
              std::string("must be a size such as 512, \"500 MB\" or 1.5GiB, not '") + bad + "'");
    EXPECT_EQ(value, bad);
  }
}

}  // namespace
}  // namespace chaski
