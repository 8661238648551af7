#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device/device.h"
#include "model/llama_config.h"
#include "model/parameter.h"
#include "model/stage.h"
#include "optim/adamw.h"
#include "optim/learning_rate.h"

namespace chaski {

// Where the goldens are compared: a CPU with so many threads, or, where the environment variable
// CHASKI_PARITY_DEVICE is "cuda", the first GPU.
std::unique_ptr<Device> parity_device(int num_threads);

// Token tensors of a whole batch, [rows, sequence_length] each; positions may be empty.
struct GoldenBatch {
  std::int64_t rows = 0;
  std::int64_t sequence_length = 0;
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> targets;
  std::vector<std::int32_t> positions;

  std::int64_t num_targets() const;
};

// A batch's rows in memory of a device, as a stage wants them.
class DeviceBatch {
 public:
  // Rows [begin, begin + count).
  DeviceBatch(Device& device, const GoldenBatch& batch, std::int64_t begin, std::int64_t count);
  const MicroBatch& micro_batch() const { return micro_batch_; }

 private:
  std::vector<Buffer> buffers_;
  MicroBatch micro_batch_;
};

// A file of tests/golden; scripts/golden/make_golden.py describes what it holds. Everything is read
// at once. Throws std::runtime_error naming the file and the object that cannot be read.
struct Golden {
  explicit Golden(const std::string& name);
  static std::vector<std::string> names();

  struct NamedValues {
    std::string name;
    std::vector<float> values;
  };
  struct Training {
    AdamWOptions adamw;
    LearningRateSchedule schedule;
    double clip = 0.0;
    std::vector<GoldenBatch> batches;
    std::vector<double> learning_rates;
    std::vector<double> losses;
    std::vector<double> gradient_norms;
    std::vector<NamedValues> weights;  // after the last step
  };

  LlamaConfig config;
  GoldenBatch batch;
  std::vector<float> logits;  // [rows, sequence_length, vocab_size]
  double loss = 0.0;          // mean over the targets
  std::int64_t num_targets = 0;
  std::vector<NamedValues> weights;
  std::vector<NamedValues> gradients;
  Training training;  // no batches where the file has none
};

// Sets the parameters that the set has (a stage need not have all of the model's).
void load_weights(const Golden& golden, ParameterSet& parameters);
const std::vector<float>& find(const std::vector<Golden::NamedValues>& values,
                               const std::string& name);
std::vector<float> to_vector(const Tensor& tensor);

// ‖actual - expected‖ / ‖expected‖, in double.
double relative_error(const std::vector<float>& actual, const std::vector<float>& expected);
double norm(const std::vector<float>& values);

}  // namespace chaski
