#include "tests/cuda_model/nccl_operation.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "tests/cuda_model/grid.h"

namespace chaski::cuda_model {
namespace {

namespace fs = std::filesystem;

std::atomic<NcclAbort>& abort_mode() {
  static std::atomic<NcclAbort> mode = [] {
    const char* const given = std::getenv("CHASKI_CUDA_MODEL_NCCL_ABORT");
    const std::string name = given == nullptr ? "ends" : given;
    return name == "leaves"  ? NcclAbort::kLeaves
           : name == "hangs" ? NcclAbort::kHangs
                             : NcclAbort::kEnds;
  }();
  return mode;
}

float to_float(const unsigned char* element, ncclDataType_t type) {
  std::uint32_t bits = 0;
  if (type == ncclFloat32) {
    std::memcpy(&bits, element, 4);
  } else {
    std::uint16_t half = 0;
    std::memcpy(&half, element, 2);
    bits = static_cast<std::uint32_t>(half) << 16;
  }
  float value = 0.0F;
  std::memcpy(&value, &bits, 4);
  return value;
}

void from_float(float value, unsigned char* element, ncclDataType_t type) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, 4);
  if (type == ncclFloat32) {
    std::memcpy(element, &bits, 4);
    return;
  }
  // To nearest, ties to even; NaN stays one.
  const bool nan = value != value;
  const std::uint32_t rounded = nan ? bits | 0x400000U : bits + 0x7fffU + ((bits >> 16) & 1U);
  const auto half = static_cast<std::uint16_t>(rounded >> 16);
  std::memcpy(element, &half, 2);
}

}  // namespace

void set_nccl_abort(NcclAbort abort) {
  abort_mode() = abort;
}

NcclAbort nccl_abort() {
  return abort_mode();
}

void Folder::put(const std::string& name, const std::string& content) const {
  const fs::path temporary = path_ / (name + ".new");
  std::ofstream(temporary, std::ios::binary) << content;
  std::error_code error;
  fs::rename(temporary, path_ / name, error);  // the others may have given up
}

bool Folder::has(const std::string& name) const {
  std::error_code error;
  return fs::exists(path_ / name, error);
}

std::string Folder::get(const std::string& name) const {
  std::ifstream file(path_ / name, std::ios::binary);
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

std::string Folder::take(const std::string& name) const {
  std::string content = get(name);
  std::error_code error;
  fs::remove(path_ / name, error);
  return content;
}

void Folder::remove() const {
  std::error_code error;
  fs::remove_all(path_, error);
}

std::string joined(std::initializer_list<std::string> parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : "-") + part;
  return text;
}

std::size_t size_of(ncclDataType_t type) {
  if (type == ncclFloat32) return sizeof(float);
  if (type == ncclBfloat16) return 2;
  fail("NCCL: data of this type is not modelled");
}

Operation::Operation(std::shared_ptr<Group> group, Kind kind, void* data, std::size_t count,
                     ncclDataType_t type, std::vector<int> peers)
    : group_(std::move(group)),
      kind_(kind),
      data_(static_cast<unsigned char*>(data)),
      count_(count),
      type_(type),
      peers_(std::move(peers)) {
  for (const int peer : peers_) {
    numbers_.push_back(group_->num_ops[static_cast<std::size_t>(peer)]++);
  }
  ++group_->outstanding;
}

bool Operation::attempt() {
  if (group_->aborted && nccl_abort() != NcclAbort::kEnds) return false;
  if (group_->aborted) {
    if (kind_ != Kind::kSend) std::memset(data_, 0xff, bytes());
  } else if (!go_on()) {
    return false;
  }
  --group_->outstanding;
  return true;
}

bool Operation::go_on() {
  if (phase_ == Phase::kCome) {
    for (std::size_t i = 0; i < peers_.size(); ++i) put("call", i, description(kind_));
    phase_ = Phase::kMeet;
  }
  if (phase_ == Phase::kMeet) {
    if (!all([&](std::size_t i) { return group_->folder.has(name("call", i, false)); })) {
      return false;
    }
    for (std::size_t i = 0; i < peers_.size(); ++i) compare(i);
    for (std::size_t i = 0; i < peers_.size() && kind_ != Kind::kReceive; ++i) {
      put("data", i, std::string(reinterpret_cast<const char*>(data_), bytes()));
    }
    phase_ = Phase::kExchange;
  }
  if (kind_ == Kind::kSend) return !group_->folder.has(name("data", 0, true));
  if (!all([&](std::size_t i) { return group_->folder.has(name("data", i, false)); })) {
    return false;
  }
  kind_ == Kind::kReceive ? receive() : sum();
  return true;
}

void Operation::receive() {
  const std::string data = group_->folder.take(name("data", 0, false));
  std::memcpy(data_, data.data(), bytes());
}

void Operation::sum() {
  std::vector<std::string> data(static_cast<std::size_t>(group_->size));
  data[static_cast<std::size_t>(group_->rank)] =
      std::string(reinterpret_cast<const char*>(data_), bytes());
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    data[static_cast<std::size_t>(peers_[i])] = group_->folder.take(name("data", i, false));
  }
  const std::size_t size = size_of(type_);
  for (std::size_t i = 0; i < count_; ++i) {
    float total = 0.0F;
    for (std::size_t rank = 0; rank < data.size(); ++rank) {
      const auto* element = reinterpret_cast<const unsigned char*>(data[rank].data()) + i * size;
      total = rank == 0 ? to_float(element, type_) : total + to_float(element, type_);
    }
    from_float(total, data_ + i * size, type_);
  }
}

void Operation::compare(std::size_t i) {
  const std::string theirs = group_->folder.take(name("call", i, false));
  const Kind wanted = kind_ == Kind::kSend      ? Kind::kReceive
                      : kind_ == Kind::kReceive ? Kind::kSend
                                                : Kind::kAllReduce;
  if (theirs == description(wanted)) return;
  fail("NCCL: " + description(kind_) + " of rank " + std::to_string(group_->rank) + " meets " +
       theirs + " of rank " + std::to_string(peers_[i]));
}

std::string Operation::description(Kind kind) const {
  const char* const verb = kind == Kind::kSend      ? "a send"
                           : kind == Kind::kReceive ? "a receive"
                                                    : "a sum";
  return std::string(verb) + " of " + std::to_string(count_) +
         (type_ == ncclFloat32 ? " f32" : " bf16");
}

std::string Operation::name(const std::string& what, std::size_t i, bool mine) const {
  const std::string here = std::to_string(group_->rank);
  const std::string there = std::to_string(peers_[i]);
  return joined({what, mine ? here : there, mine ? there : here, std::to_string(numbers_[i])});
}

void Operation::put(const std::string& what, std::size_t i, const std::string& content) const {
  group_->folder.put(name(what, i, true), content);
}

bool Operation::all(const std::function<bool(std::size_t)>& holds) const {
  for (std::size_t i = 0; i < peers_.size(); ++i) {
    if (!holds(i)) return false;
  }
  return true;
}

}  // namespace chaski::cuda_model
