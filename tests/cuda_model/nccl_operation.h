// An operation of the false NCCL (nccl.cpp), and how its sides tell each other what there is to
// tell.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <initializer_list>
#include <memory>
#include <nccl.h>
#include <string>
#include <utility>
#include <vector>

#include "tests/cuda_model/control.h"

namespace chaski::cuda_model {

/// What an abort does to operations that are under way.
NcclAbort nccl_abort();

enum class Kind { kSend, kReceive, kAllReduce };

/// What the processes of a group say to each other: files in a folder of theirs.
class Folder {
 public:
  explicit Folder(std::filesystem::path path) : path_(std::move(path)) {}

  void put(const std::string& name, const std::string& content) const;
  bool has(const std::string& name) const;
  std::string get(const std::string& name) const;
  std::string take(const std::string& name) const;
  void remove() const;

 private:
  std::filesystem::path path_;
};

/// With hyphens between them.
std::string joined(std::initializer_list<std::string> parts);

/// What the operations of a communicator keep alive.
struct Group {
  Folder folder;
  int rank;
  int size;
  bool aborted = false;
  int outstanding = 0;                 // operations that are not complete
  std::vector<std::uint64_t> num_ops;  // with each process
};

/// Of an element. The program ends at types that are not modelled.
std::size_t size_of(ncclDataType_t type);

/// An operation in a stream: meets the other sides, then gives data away, then takes data.
class Operation {
 public:
  Operation(std::shared_ptr<Group> group, Kind kind, void* data, std::size_t count,
            ncclDataType_t type, std::vector<int> peers);
  /// True when it is complete.
  bool attempt();

 private:
  enum class Phase { kCome, kMeet, kExchange };

  bool go_on();
  void receive();
  /// In ascending order of ranks.
  void sum();
  void compare(std::size_t i);
  std::string description(Kind kind) const;
  std::string name(const std::string& what, std::size_t i, bool mine) const;
  void put(const std::string& what, std::size_t i, const std::string& content) const;
  bool all(const std::function<bool(std::size_t)>& holds) const;
  std::size_t bytes() const { return count_ * size_of(type_); }

  std::shared_ptr<Group> group_;
  Kind kind_;
  unsigned char* data_;
  std::size_t count_;
  ncclDataType_t type_;
  std::vector<int> peers_;
  std::vector<std::uint64_t> numbers_;
  Phase phase_ = Phase::kCome;
};

}  // namespace chaski::cuda_model
