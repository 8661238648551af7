#include "kernels/device/shared_library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace chaski {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

// The mathematical library of this machine, which every C program can have.
constexpr const char* kFile = "libm.so.6";
constexpr const char* kNowhere = "/nowhere/libm.so.6";

TEST(SharedLibraryTest, FindsFunctions) {
  double (*cosine)(double) = nullptr;
  SharedLibrary("The library", kFile, kNowhere).find("cos", cosine);
  EXPECT_EQ(cosine(0.0), 1.0);
}

TEST(SharedLibraryTest, LooksWhereItWasBuiltToo) {
  double (*cosine)(double) = nullptr;
  SharedLibrary("The library", "libnone.so.9", kFile).find("cos", cosine);
  EXPECT_EQ(cosine(0.0), 1.0);
}

TEST(SharedLibraryTest, SaysWhatIsMissing) {
  EXPECT_THAT([] { SharedLibrary("The library", "libnone.so.9", kNowhere, "install it"); },
              ThrowsMessage<std::runtime_error>(
                  testing::AllOf(HasSubstr("The library cannot be loaded: libnone.so.9"),
                                 HasSubstr("\nhint: install it"))));
  EXPECT_THAT([] { SharedLibrary("The library", "libnone.so.9", kNowhere); },
              ThrowsMessage<std::runtime_error>(testing::Not(HasSubstr("\n"))));
  void (*function)() = nullptr;
  EXPECT_THAT([&] { SharedLibrary("The library", kFile, kNowhere).find("no_such", function); },
              ThrowsMessage<std::runtime_error>("The library has no no_such"));
}

}  // namespace
}  // namespace chaski
