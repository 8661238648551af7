#include "model/safetensors.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <limits>
#include <nlohmann/json.hpp>

#include "tests/fault/checkpoint/mutation.h"
#include "tests/fault/checkpoint/temporary_directory.h"

namespace chaski {
namespace {

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// A file by the format's description: length of the header, header, data.
std::string make_file(const std::string& header, const std::string& data) {
  std::string file(8, '\0');
  const std::uint64_t size = header.size();
  std::memcpy(file.data(), &size, 8);
  return file + header + data;
}

std::string error_of(const std::string& path) {
  try {
    const SafetensorsReader reader(path);
    return "no error";
  } catch (const std::exception& error) {
    return error.what();
  }
}

class Safetensors : public testing::Test {
 protected:
  std::string path(const std::string& name = "model.safetensors") const {
    return directory_.path() + "/" + name;
  }
  std::string error_of_header(const std::string& header, const std::string& data = "12345678") {
    write_text(path(), make_file(header, data));
    return error_of(path());
  }
  std::vector<float> read(const SafetensorsReader& reader, const std::string& name) {
    const SafetensorsEntry* entry = reader.find(name);
    if (entry == nullptr) throw std::runtime_error("no " + name);
    std::vector<float> values(static_cast<std::size_t>(entry->num_elements()));
    reader.read_f32(*entry, values.data());
    return values;
  }
  SafetensorsSource source(const std::string& name, Shape shape, float first) {
    return {name, shape, [shape, first](float* out) {
              for (std::int64_t i = 0; i < shape.num_elements(); ++i)
                out[i] = first + 0.37F * static_cast<float>(i);
            }};
  }

  TemporaryDirectory directory_;
};

TEST_F(Safetensors, WritesWhatTheFormatSays) {
  const std::vector<SafetensorsSource> tensors{source("b", {2, 3}, 1), source("a", {4}, -1)};
  EXPECT_EQ(write_safetensors(directory_.path(), tensors, {}),
            std::vector<std::string>{"model.safetensors"});
  const std::string file = read_text(path());
  std::uint64_t size = 0;
  std::memcpy(&size, file.data(), 8);
  EXPECT_EQ(size % 8, 0U);
  const auto header = nlohmann::json::parse(file.substr(8, size));
  EXPECT_EQ(header["__metadata__"]["format"], "pt");
  EXPECT_EQ(header["b"],
            nlohmann::json::parse(R"({"dtype":"F32","shape":[2,3],"data_offsets":[0,24]})"));
  EXPECT_EQ(header["a"]["data_offsets"], nlohmann::json::parse("[24,40]"));
  EXPECT_EQ(file.size(), 8 + size + 40);
  float value = 0;
  std::memcpy(&value, file.data() + 8 + size + 24, 4);
  EXPECT_EQ(value, -1.0F);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory_.path()), {}), 1);
}

TEST_F(Safetensors, ShardsAndIndex) {
  const std::vector<SafetensorsSource> tensors{source("x", {10}, 1), source("y", {10}, 2),
                                               source("z", {100}, 3), source("w", {}, 4)};
  SafetensorsOptions options;
  options.max_shard_bytes = 100;
  const auto names = write_safetensors(directory_.path(), tensors, options);
  EXPECT_EQ(names, (std::vector<std::string>{
                       "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                       "model-00003-of-00003.safetensors", "model.safetensors.index.json"}));
  const auto index = nlohmann::json::parse(read_text(path(names.back())));
  EXPECT_EQ(index["metadata"]["total_size"], 4 * 121);
  EXPECT_EQ(index["weight_map"]["y"], names[0]);
  EXPECT_EQ(index["weight_map"]["w"], names[2]);
  const SafetensorsReader reader(directory_.path());
  for (const SafetensorsSource& tensor : tensors) {
    std::vector<float> expected(static_cast<std::size_t>(tensor.shape.num_elements()));
    tensor.read(expected.data());
    EXPECT_EQ(read(reader, tensor.name), expected) << tensor.name;
  }
  EXPECT_EQ(reader.find("v"), nullptr);
  // A single file that is written afterwards is not overshadowed by the old index, or the other
  // way.
  write_safetensors(directory_.path(), {source("x", {10}, 5)}, {});
  EXPECT_EQ(SafetensorsReader(directory_.path()).entries().size(), 1U);
  write_safetensors(directory_.path(), tensors, options);
  EXPECT_EQ(SafetensorsReader(directory_.path()).entries().size(), 4U);
}

TEST_F(Safetensors, Bf16RoundsToNearestEven) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const std::vector<std::pair<float, float>> cases{
      {1.0F, 1.0F},
      {1.0F + 0x1p-8F, 1.0F},               // half-way: to even
      {1.0F + 0x3p-8F, 1.0F + 0x1p-6F},     // half-way: to even, upwards
      {1.0F + 0x1.01p-8F, 1.0F + 0x1p-7F},  // just above half-way
      {-3.14159274F, -3.140625F},
      {std::numeric_limits<float>::max(), kInfinity},
      {-kInfinity, -kInfinity},
      {0x1p-133F, 0x1p-133F},  // subnormal
      {-0.0F, -0.0F}};
  SafetensorsSource tensor{"t", {static_cast<std::int64_t>(cases.size()) + 1}, [&](float* out) {
                             for (const auto& [value, rounded] : cases) *out++ = value;
                             *out = std::bit_cast<float>(0x7F800001U);  // NaN by its lowest bit
                           }};
  SafetensorsOptions options;
  options.bf16 = true;
  write_safetensors(directory_.path(), {tensor}, options);
  const SafetensorsReader reader(path());
  EXPECT_EQ(reader.entries()[0].dtype, "BF16");
  const std::vector<float> values = read(reader, "t");
  for (std::size_t i = 0; i < cases.size(); ++i)
    EXPECT_EQ(std::bit_cast<std::uint32_t>(values[i]),
              std::bit_cast<std::uint32_t>(cases[i].second))
        << cases[i].first;
  EXPECT_TRUE(std::isnan(values.back()));
}

TEST_F(Safetensors, ReadsEveryFp16) {
  std::string data(2 * 65536, '\0');
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    std::memcpy(&data[2 * bits], &half, 2);
  }
  write_text(path(),
             make_file(R"({"h":{"dtype":"F16","shape":[65536],"data_offsets":[0,131072]}})", data));
  const std::vector<float> values = read(SafetensorsReader(path()), "h");
  for (int bits = 0; bits < 65536; ++bits) {
    const int exponent = (bits >> 10) & 31;
    const int mantissa = bits & 1023;
    const double sign = bits >= 32768 ? -1 : 1;
    const double expected =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    const auto value = static_cast<double>(values[static_cast<std::size_t>(bits)]);
    if (exponent < 31)
      ASSERT_EQ(value, sign * expected) << bits;
    else if (mantissa == 0)
      ASSERT_EQ(value, sign * std::numeric_limits<double>::infinity());
    else
      ASSERT_TRUE(std::isnan(value));
    ASSERT_EQ(std::signbit(value), bits >= 32768);
  }
}

TEST_F(Safetensors, RefusesWhatIsNoSafetensorsFile) {
  EXPECT_THROW(SafetensorsReader(path("none")), std::invalid_argument);
  EXPECT_NE(error_of(directory_.path()).find("holds neither"), std::string::npos);
  write_text(path(), "short");
  EXPECT_NE(error_of(path()).find("is no safetensors file"), std::string::npos);
  write_text(path(), std::string(8, '\xff') + "x");
  EXPECT_NE(error_of(path()).find("is no safetensors file"), std::string::npos);
  write_text(path(), make_file("{}", "").substr(0, 9));
  EXPECT_NE(error_of(path()).find("truncated"), std::string::npos);
}

TEST_F(Safetensors, RefusesHostileHeaders) {
  const auto entry = [](const std::string& shape, const std::string& offsets) {
    return R"({"t":{"dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  EXPECT_EQ(error_of_header(entry("[2]", "[0,8]")), "no error");
  for (const auto& [header, expected] : std::vector<std::pair<std::string, std::string>>{
           {"{", "malformed JSON"},
           {"[]", "no JSON object"},
           {std::string(100000, '['), "nested too deeply"},
           {entry("[3]", "[0,8]"), "larger than the file"},
           {entry("[1]", "[0,8]"), "not what its shape needs"},
           {entry("[2]", "[8,0]"), "beyond the file's end"},
           {entry("[2]", "[0,99]"), "beyond the file's end"},
           {entry("[-2]", "[0,8]"), "no whole number"},
           {entry("[2.0]", "[0,8]"), "no whole number"},
           {entry("[1e300]", "[0,8]"), "no whole number"},
           {entry("[4611686018427387904,4]", "[0,8]"), "larger than the file"},
           {entry("[8,8,8,8]", "[0,8]"), "larger than the file"},
           {entry("[1]", "[4,8]"), "overlap or leave a gap"},
           {entry("[1]", "[0,4]"), "has 8 bytes of tensors instead of 4"},
           {R"({"t":{"dtype":"X9","shape":[2],"data_offsets":[0,8]}})", "unknown dtype"},
           {R"({"t":{"dtype":"F32","shape":[2]}})", "malformed way"},
           {R"({"a\nb":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "unusable name"}}) {
    const std::string error = error_of_header(header);
    EXPECT_NE(error.find(expected), std::string::npos) << header.substr(0, 80) << ": " << error;
    EXPECT_EQ(error.find('\n'), std::string::npos);
  }
}

TEST_F(Safetensors, RefusesHostileIndexes) {
  write_safetensors(directory_.path(), {source("x", {2}, 1)}, {});
  std::filesystem::rename(path(), path("a.safetensors"));
  const auto error = [&](const std::string& index) {
    write_text(path("model.safetensors.index.json"), index);
    return error_of(directory_.path());
  };
  EXPECT_EQ(error(R"({"weight_map":{"x":"a.safetensors"}})"), "no error");
  EXPECT_NE(error(R"({"weight_map":{"x":"../a.safetensors"}})").find("beside it"),
            std::string::npos);
  EXPECT_NE(error(R"({"weight_map":{"x":"/etc/passwd"}})").find("beside it"), std::string::npos);
  EXPECT_NE(error(R"({"weight_map":{"y":"a.safetensors"}})").find("holds no y"), std::string::npos);
  EXPECT_NE(error(R"({"weight_map":{"x":"b.safetensors"}})").find("cannot open"),
            std::string::npos);
  EXPECT_NE(error(R"({"weight_map":[]})").find("no weight_map"), std::string::npos);
  EXPECT_NE(error(R"({"weight_map":{"x":1}})").find("no string"), std::string::npos);
}

TEST_F(Safetensors, FailureLeavesNothing) {
  EXPECT_THROW(write_safetensors(directory_.path() + "/none", {source("x", {2}, 1)}, {}),
               std::runtime_error);
  const SafetensorsSource failing{"x", {2}, [](float*) { throw std::runtime_error("read error"); }};
  EXPECT_THROW(write_safetensors(directory_.path(), {failing}, {}), std::runtime_error);
  EXPECT_TRUE(std::filesystem::is_empty(directory_.path()));
}

TEST_F(Safetensors, MutatedFiles) {
  write_safetensors(directory_.path(), {source("x", {3, 2}, 1), source("y", {5}, 2)}, {});
  const std::string original = read_text(path());
  const std::size_t header_end = original.size() - 44;
  Mutator mutator(5);
  int readable = 0;
  for (int i = 0; i < 5000; ++i) {
    // The header is where damage can do harm; the data behind it may be anything.
    const std::vector<char> header =
        mutator.mutate({original.begin(), original.begin() + static_cast<long>(header_end)});
    write_text(path(), std::string(header.begin(), header.end()) + original.substr(header_end));
    try {
      const SafetensorsReader reader(path());
      for (const SafetensorsEntry& entry : reader.entries()) read(reader, entry.name);
      ++readable;
    } catch (const std::runtime_error&) {
    }
  }
  EXPECT_LT(readable, 1000);
}

}  // namespace
}  // namespace chaski
