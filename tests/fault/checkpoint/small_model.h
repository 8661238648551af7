#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "fault/checkpoint/metadata.h"
#include "fault/checkpoint/reader.h"
#include "model/huggingface.h"
#include "model/parameter.h"
#include "optim/optimizer.h"

namespace chaski {

// An optimizer that has some tensors and does nothing with them.
class IdleOptimizer : public Optimizer {
 public:
  explicit IdleOptimizer(std::vector<NamedTensor> tensors, std::string name = "adamw")
      : tensors_(std::move(tensors)), name_(std::move(name)) {}

  void step(const OptimizerStep&) override {}
  std::vector<NamedTensor> state() override { return tensors_; }
  void load(const StateSource& source) override {
    for (const NamedTensor& named : tensors_) source.read(named.name, named.tensor);
  }
  std::string name() const override { return name_; }

 private:
  std::vector<NamedTensor> tensors_;
  std::string name_;
};

// The weights and optimizer state of a model of a few kilobytes, filled by a formula.
class SmallModel {
 public:
  explicit SmallModel(std::int64_t vocab_size = 17)
      : device_(Device::create_cpu(1)), weights_(*device_) {
    config_.hidden_size = 8;
    config_.intermediate_size = 12;
    config_.num_layers = 2;
    config_.num_heads = 2;
    config_.vocab_size = vocab_size;
    config_.rope_theta = 12345.678;
    config_.resolve();
    for (const WeightShape& weight : huggingface_weights(config_))
      weights_.add(weight.name, ParameterKind::attention, 0, weight.shape);
    weights_.allocate();
    for (const Parameter& parameter : weights_) {
      buffers_.push_back(device_->allocate(DType::f32, parameter.shape, MemoryCategory::optimizer));
      optimizer_.push_back({"first_moment/" + parameter.name, buffers_.back().tensor()});
    }
    add_state("counts", DType::i32, {5});
    add_state("codes", DType::u8, {3, 7});
    add_state("master", DType::bf16, {2, 3, 4});
    add_state("scalar", DType::f32, {});
    add_state("scores", DType::f64, {3});
    add_state("updates", DType::i64, {});
  }

  void fill(std::int64_t step) {
    std::uint32_t value = static_cast<std::uint32_t>(step) * 2654435761U;
    for_each([&](const std::string&, const Tensor& tensor) {
      auto* bytes = static_cast<unsigned char*>(tensor.raw());
      for (std::int64_t i = 0; i < tensor.num_bytes(); ++i) {
        value = value * 1664525U + 1013904223U;
        bytes[i] = static_cast<unsigned char>(value >> 24);
      }
    });
  }

  CheckpointMetadata metadata(std::int64_t step) const {
    CheckpointMetadata metadata;
    metadata.step = step;
    metadata.updates = step / 2;
    metadata.seed = 0xFEDCBA9876543210U;
    metadata.tokens_seen = step * 1000;
    metadata.config_toml = "[run]\nname = \"größer\"\n";
    metadata.model = config_;
    metadata.optimizer_name = "adamw";
    metadata.precision = {{"weights", "f32"}, {"moments", "f32"}};
    metadata.tokenizer_fingerprint = "0123abcd";
    metadata.tokenizer_model = std::string("\0binary\xff\n", 9);
    metadata.versions = {{"chaski", "0.1.0"}, {"commit", "abc"}};
    metadata.replicas = 2;
    metadata.threads = 3;
    return metadata;
  }

  // Reads the checkpoint into this model; returns its step.
  std::int64_t read(const CheckpointReader& reader) {
    reader.read_weights(weights_);
    IdleOptimizer optimizer(optimizer_);
    reader.read_optimizer(optimizer);
    return reader.metadata().step;
  }

  std::string bytes() {
    std::string all;
    for_each([&](const std::string&, const Tensor& tensor) {
      all.append(static_cast<const char*>(tensor.raw()),
                 static_cast<std::size_t>(tensor.num_bytes()));
    });
    return all;
  }
  static std::string bytes_at(std::int64_t step) {
    SmallModel model;
    model.fill(step);
    return model.bytes();
  }

  LlamaConfig& config() { return config_; }
  ParameterSet& weights() { return weights_; }
  std::vector<NamedTensor>& optimizer() { return optimizer_; }

 private:
  void add_state(const std::string& name, DType dtype, Shape shape) {
    buffers_.push_back(device_->allocate(dtype, shape, MemoryCategory::optimizer));
    optimizer_.push_back({name, buffers_.back().tensor()});
  }
  template <typename Action>
  void for_each(Action action) {
    for (const Parameter& parameter : weights_) action(parameter.name, parameter.value);
    for (const NamedTensor& state : optimizer_) action(state.name, state.tensor);
  }

  std::unique_ptr<Device> device_;
  LlamaConfig config_;
  ParameterSet weights_;
  std::vector<Buffer> buffers_;
  std::vector<NamedTensor> optimizer_;
};

}  // namespace chaski
