#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device/tensor.h"

namespace chaski {

// A tensor in a safetensors file.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // as in the file: "F32", "BF16", "F16" can be read as fp32
  std::vector<std::int64_t> shape;
  std::string file;  // its path
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  std::int64_t num_elements() const;
};

// Reads `x.safetensors`, or a directory with `model.safetensors` or with the shards that
// `model.safetensors.index.json` names. Elements are read when they are asked for.
// Damaged or hostile files throw std::runtime_error naming the file and what is wrong.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(const std::string& path);
  ~SafetensorsReader();
  SafetensorsReader(const SafetensorsReader&) = delete;
  SafetensorsReader& operator=(const SafetensorsReader&) = delete;

  const std::vector<SafetensorsEntry>& entries() const;         // sorted by name
  const SafetensorsEntry* find(const std::string& name) const;  // null: none
  // Converts all elements to fp32; exact for F32, BF16 and F16. Throws std::runtime_error for
  // another dtype.
  void read_f32(const SafetensorsEntry& entry, float* destination) const;

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

// A tensor to be written, and what fills its fp32 elements when their turn comes.
struct SafetensorsSource {
  std::string name;
  Shape shape;
  std::function<void(float* destination)> read;
};
struct SafetensorsOptions {
  bool bf16 = false;                  // round to nearest even; else fp32
  std::uint64_t max_shard_bytes = 0;  // 0: one file
};
// Writes `model.safetensors`, or `model-00001-of-000NN.safetensors` … with
// `model.safetensors.index.json`, into an existing directory; holds one tensor in memory at a time.
// Each file appears under its name when it is complete and durable. Returns the names written.
std::vector<std::string> write_safetensors(const std::string& directory,
                                           const std::vector<SafetensorsSource>& tensors,
                                           const SafetensorsOptions& options);

}  // namespace chaski
