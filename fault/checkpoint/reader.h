#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fault/checkpoint/directory.h"
#include "fault/checkpoint/file_system.h"
#include "fault/checkpoint/metadata.h"
#include "model/parameter.h"
#include "optim/optimizer.h"

namespace chaski {

// A tensor in a checkpoint.
struct StoredTensor {
  std::string name;  // "weights/<Hugging Face name>" or "optimizer/<name>"
  DType dtype = DType::f32;
  Shape shape;
  int shard = 0;
  std::uint64_t offset = 0;  // in the shard file; elements are contiguous, little endian
  std::uint64_t bytes = 0;
  std::uint64_t checksum = 0;  // XXH3-64 of the elements' bytes
};

// What a ParameterSet holds: a model, or one pipeline stage of it.
enum class Extent { whole_model, stage };

// Reads a checkpoint, whatever layout wrote it. Nothing in a damaged file makes it crash, hang or
// allocate more than the file's size: it throws std::runtime_error naming the file and the damage.
class CheckpointReader {
 public:
  // `path` as in find_checkpoint(). Verification::sizes suffices after resolve_checkpoint() or on
  // all ranks but one: tensors are checked against their own checksums when they are read.
  explicit CheckpointReader(const std::string& path,
                            Verification verification = Verification::checksums,
                            FileSystem& files = posix_file_system());
  ~CheckpointReader();
  CheckpointReader(const CheckpointReader&) = delete;
  CheckpointReader& operator=(const CheckpointReader&) = delete;

  const std::string& path() const;  // of the checkpoint directory
  // Newer ones that were incomplete or damaged, where `path` named a run.
  const std::vector<SkippedCheckpoint>& skipped() const;
  const CheckpointMetadata& metadata() const;
  const std::vector<StoredTensor>& tensors() const;  // sorted by name

  // Fills the values of all parameters. Throws std::invalid_argument naming the tensor and both
  // shapes when one is missing or different, or (of a whole model) when there are others.
  void read_weights(ParameterSet& parameters, Extent extent = Extent::whole_model) const;
  bool has_optimizer() const;
  // Gives the optimizer its state. Throws std::invalid_argument when another one wrote the
  // checkpoint, or a tensor that it wants is missing or of another shape or dtype.
  void read_optimizer(Optimizer& optimizer) const;
  // Reads one tensor's bytes (stored.bytes of them).
  void read(const StoredTensor& stored, void* destination) const;
  // Throws std::runtime_error naming it when there is none of this name.
  const StoredTensor& at(const std::string& name) const;

 private:
  struct Implementation;
  class OptimizerState;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace chaski
