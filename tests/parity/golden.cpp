#include "tests/parity/golden.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <gtest/gtest.h>
#include <hdf5.h>
#include <stdexcept>

#include "kernels/device/device_backend.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/loss/cross_entropy.h"

namespace chaski {
namespace {

// An HDF5 handle with its closing function.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t), const std::string& what) : id_(id), close_(close) {
    if (id < 0) throw std::runtime_error("golden numbers: cannot read " + what);
  }
  Handle(Handle&& other) noexcept : id_(other.id_), close_(other.close_) { other.id_ = -1; }
  Handle& operator=(Handle&&) = delete;
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  operator hid_t() const { return id_; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

Handle open_group(hid_t parent, const std::string& name) {
  return {H5Gopen2(parent, name.c_str(), H5P_DEFAULT), H5Gclose, name};
}

bool has(hid_t parent, const char* name) {
  return H5Lexists(parent, name, H5P_DEFAULT) > 0;
}

template <typename T>
hid_t memory_type();
template <>
hid_t memory_type<float>() {
  return H5T_NATIVE_FLOAT;
}
template <>
hid_t memory_type<double>() {
  return H5T_NATIVE_DOUBLE;
}
template <>
hid_t memory_type<std::int32_t>() {
  return H5T_NATIVE_INT32;
}
template <>
hid_t memory_type<std::int64_t>() {
  return H5T_NATIVE_INT64;
}

template <typename T>
std::vector<T> read(hid_t parent, const std::string& name) {
  const Handle dataset(H5Dopen2(parent, name.c_str(), H5P_DEFAULT), H5Dclose, name);
  const Handle space(H5Dget_space(dataset), H5Sclose, name);
  std::vector<T> values(H5Sget_simple_extent_npoints(space));
  if (H5Dread(dataset, memory_type<T>(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0) {
    throw std::runtime_error("golden numbers: cannot read " + name);
  }
  return values;
}

template <typename T>
T attribute(hid_t object, const std::string& name) {
  const Handle handle(H5Aopen(object, name.c_str(), H5P_DEFAULT), H5Aclose, name);
  T value{};
  if (H5Aread(handle, memory_type<T>(), &value) < 0) {
    throw std::runtime_error("golden numbers: cannot read " + name);
  }
  return value;
}

// h5py writes text as variable-length strings.
std::string text_attribute(hid_t object, const std::string& name) {
  const Handle handle(H5Aopen(object, name.c_str(), H5P_DEFAULT), H5Aclose, name);
  const Handle type(H5Aget_type(handle), H5Tclose, name);
  char* text = nullptr;
  if (H5Tis_variable_str(type) <= 0 || H5Aread(handle, type, static_cast<void*>(&text)) < 0) {
    throw std::runtime_error("golden numbers: cannot read " + name);
  }
  std::string result(text);
  H5free_memory(text);
  return result;
}

std::vector<Golden::NamedValues> read_all(hid_t parent, const std::string& name) {
  const Handle group = open_group(parent, name);
  std::vector<std::string> names;
  const auto collect = [](hid_t, const char* child, const H5L_info_t*, void* list) -> herr_t {
    static_cast<std::vector<std::string>*>(list)->push_back(child);
    return 0;
  };
  H5Literate(group, H5_INDEX_NAME, H5_ITER_INC, nullptr, collect, &names);
  std::vector<Golden::NamedValues> result;
  for (const std::string& child : names) result.push_back({child, read<float>(group, child)});
  return result;
}

LlamaConfig read_config(hid_t file) {
  LlamaConfig config;
  config.hidden_size = attribute<std::int64_t>(file, "hidden_size");
  config.intermediate_size = attribute<std::int64_t>(file, "intermediate_size");
  config.num_layers = attribute<std::int64_t>(file, "num_layers");
  config.num_heads = attribute<std::int64_t>(file, "num_heads");
  config.num_kv_heads = attribute<std::int64_t>(file, "num_kv_heads");
  config.head_dim = attribute<std::int64_t>(file, "head_dim");
  config.vocab_size = attribute<std::int64_t>(file, "vocab_size");
  config.max_position_embeddings = attribute<std::int64_t>(file, "max_position_embeddings");
  config.rope_theta = attribute<double>(file, "rope_theta");
  config.rms_norm_eps = attribute<double>(file, "rms_norm_eps");
  config.tie_embeddings = attribute<std::int64_t>(file, "tie_embeddings") != 0;
  if (H5Aexists(file, "moc_keep") > 0) {
    config.moc = MocConfig{attribute<std::int64_t>(file, "moc_keep")};
    if (text_attribute(file, "moc_pattern") == name_of(MocPattern::two_of_eight)) {
      config.moc->pattern = MocPattern::two_of_eight;
    }
  }
  config.resolve();
  return config;
}

// Batches stored one after the other, each of the given arrangement.
std::vector<GoldenBatch> read_batches(hid_t group, std::int64_t rows,
                                      std::int64_t sequence_length) {
  const auto tokens = read<std::int32_t>(group, "tokens");
  const auto targets = read<std::int32_t>(group, "targets");
  const auto positions = has(group, "positions") ? read<std::int32_t>(group, "positions")
                                                 : std::vector<std::int32_t>();
  const std::size_t size = rows * sequence_length;
  const auto part = [size](const std::vector<std::int32_t>& all, std::size_t begin) {
    if (all.empty()) return all;
    return std::vector<std::int32_t>(all.begin() + begin, all.begin() + begin + size);
  };
  std::vector<GoldenBatch> batches;
  for (std::size_t begin = 0; begin < tokens.size(); begin += size) {
    batches.push_back(
        {rows, sequence_length, part(tokens, begin), part(targets, begin), part(positions, begin)});
  }
  return batches;
}

DecayKind decay_kind_named(const std::string& name) {
  for (const DecayKind kind : {DecayKind::constant, DecayKind::linear, DecayKind::cosine,
                               DecayKind::warmup_stable_decay}) {
    if (name == name_of(kind)) return kind;
  }
  throw std::runtime_error("golden numbers: no schedule is called " + name);
}

Golden::Training read_training(hid_t group, std::int64_t rows, std::int64_t sequence_length) {
  Golden::Training training;
  training.adamw.beta1 = attribute<double>(group, "beta1");
  training.adamw.beta2 = attribute<double>(group, "beta2");
  training.adamw.epsilon = attribute<double>(group, "epsilon");
  training.adamw.weight_decay = attribute<double>(group, "weight_decay");
  training.schedule.kind = decay_kind_named(text_attribute(group, "schedule"));
  training.schedule.peak = attribute<double>(group, "peak");
  training.schedule.steps = attribute<std::int64_t>(group, "steps");
  training.schedule.warmup_steps = attribute<std::int64_t>(group, "warmup_steps");
  training.schedule.decay_steps = attribute<std::int64_t>(group, "decay_steps");
  training.schedule.min_lr_ratio = attribute<double>(group, "min_lr_ratio");
  training.clip = attribute<double>(group, "clip");
  training.batches = read_batches(group, rows, sequence_length);
  training.learning_rates = read<double>(group, "learning_rates");
  training.losses = read<double>(group, "losses");
  training.gradient_norms = read<double>(group, "gradient_norms");
  training.weights = read_all(group, "weights");
  return training;
}

}  // namespace

std::int64_t GoldenBatch::num_targets() const {
  return std::count_if(targets.begin(), targets.end(),
                       [](std::int32_t target) { return target != kIgnoredTarget; });
}

namespace {

bool wants_gpu() {
  const char* wanted = std::getenv("CHASKI_PARITY_DEVICE");
  return wanted != nullptr && std::string(wanted) == "cuda";
}

// Ends before the first test where the GPU that was asked for is not there, as ctest knows it.
class GpuIfWanted final : public ::testing::Environment {
 public:
  void SetUp() override {
    constexpr int kSkipped = 77;
    if (!wants_gpu()) return;
    const std::string why = cuda_obstacle(0);
    if (why.empty()) return;
    std::printf("skipped: %s\n", why.c_str());
    std::fflush(stdout);
    std::_Exit(kSkipped);
  }
};
const ::testing::Environment* const gpu_if_wanted =
    ::testing::AddGlobalTestEnvironment(new GpuIfWanted);

}  // namespace

std::unique_ptr<Device> parity_device(int num_threads) {
  if (wants_gpu()) return Device::create_cuda(0);
  return Device::create_cpu(num_threads);
}

DeviceBatch::DeviceBatch(Device& device, const GoldenBatch& batch, std::int64_t begin,
                         std::int64_t count) {
  const auto upload = [&](const std::vector<std::int32_t>& all) {
    if (all.empty()) return Tensor();
    buffers_.push_back(
        device.allocate(DType::i32, {count, batch.sequence_length}, MemoryCategory::workspace));
    copy_from_host(all.data() + begin * batch.sequence_length, buffers_.back().tensor());
    return buffers_.back().tensor();
  };
  micro_batch_.tokens = upload(batch.tokens);
  micro_batch_.targets = upload(batch.targets);
  micro_batch_.positions = upload(batch.positions);
}

Golden::Golden(const std::string& name) {
  // Carried to another machine, a build finds its goldens by the variable.
  const char* folder = std::getenv("CHASKI_GOLDEN_DIR");
  const std::string path =
      std::string(folder != nullptr ? folder : CHASKI_GOLDEN_DIR) + "/" + name + ".h5";
  const Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose, path);
  config = read_config(file);
  const Handle tokens(H5Dopen2(file, "tokens", H5P_DEFAULT), H5Dclose, "tokens");
  const Handle space(H5Dget_space(tokens), H5Sclose, "tokens");
  hsize_t dims[2] = {};
  if (H5Sget_simple_extent_ndims(space) != 2) throw std::runtime_error(path + ": tokens not 2-D");
  H5Sget_simple_extent_dims(space, dims, nullptr);
  batch = read_batches(file, dims[0], dims[1]).at(0);
  logits = read<float>(file, "logits");
  loss = read<double>(file, "loss").at(0);
  num_targets = attribute<std::int64_t>(file, "num_targets");
  weights = read_all(file, "weights");
  gradients = read_all(file, "gradients");
  if (has(file, "training")) {
    training = read_training(open_group(file, "training"), dims[0], dims[1]);
  }
}

std::vector<std::string> Golden::names() {
  return {"mha_untied", "gqa_tied",     "mqa_odd",  "documents",
          "long",       "single_token", "moc_topk", "moc_two_of_eight"};
}

void load_weights(const Golden& golden, ParameterSet& parameters) {
  for (Parameter& parameter : parameters) {
    const std::vector<float>& values = find(golden.weights, parameter.name);
    if (static_cast<std::int64_t>(values.size()) != parameter.value.num_elements()) {
      throw std::runtime_error(parameter.name + " has another size than the golden one");
    }
    copy_from_host(values.data(), parameter.value);
  }
  parameters.refresh_compute();
}

const std::vector<float>& find(const std::vector<Golden::NamedValues>& values,
                               const std::string& name) {
  for (const auto& entry : values) {
    if (entry.name == name) return entry.values;
  }
  throw std::runtime_error("golden numbers have no " + name);
}

std::vector<float> to_vector(const Tensor& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.num_elements()));
  copy_to_host(tensor, values.data());
  return values;
}

double norm(const std::vector<float>& values) {
  double sum = 0.0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

double relative_error(const std::vector<float>& actual, const std::vector<float>& expected) {
  if (actual.size() != expected.size()) throw std::runtime_error("sizes differ");
  double difference = 0.0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const double d = static_cast<double>(actual[i]) - expected[i];
    difference += d * d;
  }
  return std::sqrt(difference) / norm(expected);
}

}  // namespace chaski
