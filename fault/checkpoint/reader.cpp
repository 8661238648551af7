#include "fault/checkpoint/reader.h"

#include <algorithm>
#include <fmt/format.h>
#include <set>
#include <xxhash.h>

#include "fault/checkpoint/marker.h"
#include "fault/checkpoint/shard.h"
#include "kernels/elementwise/elementwise.h"

namespace chaski {
namespace {

constexpr const char* kWeights = "weights/";
constexpr const char* kOptimizer = "optimizer/";
constexpr const char* kDamageHint =
    "\nhint: use an earlier checkpoint; `chaski inspect --verify` reads a whole one";

// Refuses a tensor that does not fit into where it is to be read.
void check_fits(const std::string& path, const StoredTensor& stored, const Tensor& tensor) {
  if (stored.shape == tensor.shape() && stored.dtype == tensor.dtype()) return;
  throw std::invalid_argument(fmt::format("{}: {} is {} {}, but {} {} is needed", path, stored.name,
                                          name_of(stored.dtype), stored.shape.to_string(),
                                          name_of(tensor.dtype()), tensor.shape().to_string()));
}

}  // namespace

struct CheckpointReader::Implementation {
  Implementation(const std::string& path, Verification verification, FileSystem& used)
      : files(used), listing(find_checkpoint(path, verification, used)) {}

  FileSystem& files;
  CheckpointListing listing;
  CheckpointMetadata metadata;
  std::vector<StoredTensor> tensors;
  std::vector<std::unique_ptr<File>> shards;

  void open_shards() {
    const CompletionMarker marker = read_marker(files, listing.path);
    for (std::size_t i = 0; i < marker.shards.size(); ++i) {
      const std::string path = join_path(listing.path, marker.shards[i].file);
      ShardContents contents = read_shard(files, path);
      if (contents.metadata.step != marker.step || contents.shard != static_cast<int>(i) ||
          contents.num_shards != static_cast<int>(marker.shards.size()))
        throw std::runtime_error(
            fmt::format("{}: belongs to another checkpoint than its {}", path, kMarkerName));
      tensors.insert(tensors.end(), contents.tensors.begin(), contents.tensors.end());
      if (i == 0) metadata = std::move(contents.metadata);
      shards.push_back(files.open(path));
    }
    sort_tensors();
  }

  void sort_tensors() {
    const auto by_name = [](const StoredTensor& a, const StoredTensor& b) {
      return a.name < b.name;
    };
    std::sort(tensors.begin(), tensors.end(), by_name);
    const auto twice = std::adjacent_find(
        tensors.begin(), tensors.end(),
        [](const StoredTensor& a, const StoredTensor& b) { return a.name == b.name; });
    if (twice != tensors.end())
      throw std::runtime_error(
          fmt::format("{}: holds {} more than once", listing.path, twice->name));
  }

  const StoredTensor* find(const std::string& name) const {
    const auto found = std::lower_bound(
        tensors.begin(), tensors.end(), name,
        [](const StoredTensor& stored, const std::string& text) { return stored.name < text; });
    return found != tensors.end() && found->name == name ? &*found : nullptr;
  }

  const StoredTensor& find_for(const std::string& name, const Tensor& tensor) const {
    const StoredTensor* stored = find(name);
    if (stored == nullptr)
      throw std::invalid_argument(fmt::format("{}: holds no {} (needed: {} {})", listing.path, name,
                                              name_of(tensor.dtype()), tensor.shape().to_string()));
    check_fits(listing.path, *stored, tensor);
    return *stored;
  }

  void read(const StoredTensor& stored, void* destination) const {
    File& file = *shards.at(static_cast<std::size_t>(stored.shard));
    if (file.read_at(stored.offset, destination, stored.bytes) != stored.bytes)
      throw std::runtime_error(
          fmt::format("{}: {} ends early{}", listing.path, stored.name, kDamageHint));
    if (XXH3_64bits(destination, stored.bytes) != stored.checksum)
      throw std::runtime_error(
          fmt::format("{}: {} is damaged (checksum){}", listing.path, stored.name, kDamageHint));
  }

  void read(const StoredTensor& stored, const Tensor& tensor) const {
    if (tensor.device().backend() == Backend::cpu) return read(stored, tensor.raw());
    std::vector<char> staging(stored.bytes);
    read(stored, staging.data());
    copy_from_host(staging.data(), tensor);
  }
};

// What is under "optimizer/".
class CheckpointReader::OptimizerState : public StateSource {
 public:
  explicit OptimizerState(const Implementation& checkpoint) : checkpoint_(checkpoint) {}

  std::optional<Stored> find(const std::string& name) const override {
    const StoredTensor* stored = checkpoint_.find(kOptimizer + name);
    if (stored == nullptr) return std::nullopt;
    return Stored{stored->dtype, stored->shape};
  }

  void read(const std::string& name, const Tensor& tensor) const override {
    checkpoint_.read(checkpoint_.find_for(kOptimizer + name, tensor), tensor);
  }

 private:
  const Implementation& checkpoint_;
};

CheckpointReader::CheckpointReader(const std::string& path, Verification verification,
                                   FileSystem& files)
    : implementation_(new Implementation(path, verification, files)) {
  implementation_->open_shards();
}

CheckpointReader::~CheckpointReader() = default;

const std::vector<SkippedCheckpoint>& CheckpointReader::skipped() const {
  return implementation_->listing.skipped;
}

const std::string& CheckpointReader::path() const {
  return implementation_->listing.path;
}
const CheckpointMetadata& CheckpointReader::metadata() const {
  return implementation_->metadata;
}
const std::vector<StoredTensor>& CheckpointReader::tensors() const {
  return implementation_->tensors;
}

void CheckpointReader::read_weights(ParameterSet& parameters, Extent extent) const {
  std::set<std::string> wanted;
  for (Parameter& parameter : parameters) {
    implementation_->find_for(kWeights + parameter.name, parameter.value);
    wanted.insert(kWeights + parameter.name);
  }
  for (const StoredTensor& stored : tensors())
    if (extent == Extent::whole_model && stored.name.rfind(kWeights, 0) == 0 &&
        wanted.count(stored.name) == 0)
      throw std::invalid_argument(fmt::format("{}: holds {} {}, which the model does not have",
                                              path(), stored.name, stored.shape.to_string()));
  for (Parameter& parameter : parameters)
    implementation_->read(at(kWeights + parameter.name), parameter.value);
  parameters.refresh_compute();
}

bool CheckpointReader::has_optimizer() const {
  return !metadata().optimizer_name.empty();
}

void CheckpointReader::read_optimizer(Optimizer& optimizer) const {
  if (metadata().optimizer_name != optimizer.name())
    throw std::invalid_argument(
        fmt::format("{}: holds the state of {}, not of {}", path(),
                    has_optimizer() ? "optimizer " + metadata().optimizer_name : "no optimizer",
                    optimizer.name()));
  optimizer.load(OptimizerState(*implementation_));
}

void CheckpointReader::read(const StoredTensor& stored, void* destination) const {
  implementation_->read(stored, destination);
}

const StoredTensor& CheckpointReader::at(const std::string& name) const {
  if (const StoredTensor* stored = implementation_->find(name)) return *stored;
  throw std::runtime_error(fmt::format("{}: holds no {}", path(), name));
}

}  // namespace chaski
