#include <cstring>
#include <gtest/gtest.h>

#include "model/safetensors.h"
#include "tests/fault/checkpoint/mutation.h"
#include "tests/fault/checkpoint/temporary_directory.h"
#include "tests/fuzz/fuzz_files.h"
#include "tests/fuzz/guarded_read.h"
#include "tests/fuzz/text_mutation.h"

namespace chaski {
namespace {

class SafetensorsFuzz : public testing::Test {
 protected:
  static SafetensorsSource source(const std::string& name, Shape shape) {
    return {name, shape, [shape](float* out) {
              for (std::int64_t i = 0; i < shape.num_elements(); ++i)
                out[i] = static_cast<float>(i);
            }};
  }
  std::string path(const std::string& name) const { return directory_.path() + "/" + name; }
  void use() const {
    const SafetensorsReader reader(directory_.path());
    for (const SafetensorsEntry& entry : reader.entries()) {
      if (reader.find(entry.name) == nullptr) throw std::logic_error("an entry is not found");
      std::vector<float> values(static_cast<std::size_t>(entry.num_elements()));
      reader.read_f32(entry, values.data());
    }
  }
  // Header and data; the header's length is made to fit.
  static std::string with_header(const std::string& header, const std::string& data) {
    const std::uint64_t size = header.size();
    std::string file(sizeof(size), '\0');
    std::memcpy(file.data(), &size, sizeof(size));
    return file + header + data;
  }

  TemporaryDirectory directory_;
};

TEST_F(SafetensorsFuzz, Files) {
  SafetensorsOptions options;
  options.bf16 = true;
  write_safetensors(directory_.path(),
                    {source("x", {3, 2}), source("y", {5}), source("z", {}), source("w", {0, 7})},
                    options);
  const std::string original = read_file(path("model.safetensors"));
  std::uint64_t size = 0;
  std::memcpy(&size, original.data(), sizeof(size));
  const std::string header = original.substr(sizeof(size), size);
  const std::string data = original.substr(sizeof(size) + size);
  Mutator bytes(fuzz_seed());
  TextMutator text(fuzz_seed());
  int refused = 0;
  for (int i = 0; i < scaled(4000); ++i) {
    std::string file;
    if (i % 4 == 0) {
      const std::vector<char> mutant = bytes.mutate({original.begin(), original.end()});
      file.assign(mutant.begin(), mutant.end());
    } else {
      file = with_header(text.mutate(header), data);
    }
    write_file(path("model.safetensors"), file);
    if (!read_guarded("safetensors", file, [&] { use(); })) ++refused;
  }
  EXPECT_GT(refused, scaled(2000));
}

TEST_F(SafetensorsFuzz, Indexes) {
  SafetensorsOptions options;
  options.max_shard_bytes = 100;
  write_safetensors(directory_.path(), {source("x", {10}), source("y", {10}), source("z", {100})},
                    options);
  const std::string original = read_file(path("model.safetensors.index.json"));
  TextMutator mutator(fuzz_seed());
  int refused = 0;
  for (int i = 0; i < scaled(2500); ++i) {
    const std::string index = mutator.mutate(original);
    write_file(path("model.safetensors.index.json"), index);
    if (!read_guarded("safetensors-index", index, [&] { use(); })) ++refused;
  }
  EXPECT_GT(refused, scaled(500));
}

}  // namespace
}  // namespace chaski
