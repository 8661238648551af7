#pragma once

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "fault/checkpoint/file_system.h"

namespace chaski {

// A file system in memory that knows what is durable. A file's contents are durable up to its last
// sync(), a directory's entries up to its last sync_directory(). What came after may survive a
// power failure or not, in any combination that keeps the order within a directory.
class FaultyFileSystem final : public FileSystem {
 public:
  enum class Loss { all, none, random };  // of what was not synced

  FaultyFileSystem() : root_(std::make_shared<Node>(true)) {}
  // As `other` would be after a restart that loses nothing.
  FaultyFileSystem(const FaultyFileSystem& other) : root_(copy(*other.root_)) {}

  // The operation after the next `count` changing ones, and all later ones, fail: the process is
  // dead. A write that fails has been done in part.
  void stop_after(std::int64_t count) { stop_at_ = operations_ + count; }
  // That one operation fails with EIO, the later ones work.
  void fail_once_after(std::int64_t count) { fail_at_ = operations_ + count; }
  // Files can hold so many bytes together.
  void set_capacity(std::uint64_t bytes) { capacity_ = bytes; }
  std::int64_t operations() const { return operations_; }

  // The machine comes up again with what was durable and, of the rest, what `loss` leaves.
  void restart(Loss loss, std::uint64_t seed) {
    const std::lock_guard lock(mutex_);
    std::mt19937_64 random(seed);
    settle(*root_, loss, random);
    stop_at_ = fail_at_ = std::numeric_limits<std::int64_t>::max();
  }

  // Direct access for tests that damage files.
  std::vector<char>& contents(const std::string& path) { return find(path)->live; }

  std::unique_ptr<File> open(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    const auto node = find(path);
    if (!node || node->is_directory) throw FileError(path + ": no such file", ENOENT);
    return std::make_unique<OpenFile>(*this, node);
  }

  std::unique_ptr<File> create(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    count_operation();
    Node& directory = parent_of(path);
    auto node = std::make_shared<Node>(false);
    change(directory,
           [name = name_of_path(path), node](Entries& entries) { entries[name] = node; });
    return std::make_unique<OpenFile>(*this, node);
  }

  void create_directory(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    count_operation();
    if (find(path)) return;
    auto node = std::make_shared<Node>(true);
    change(parent_of(path),
           [name = name_of_path(path), node](Entries& entries) { entries[name] = node; });
  }

  void rename(const std::string& from, const std::string& to) override {
    const std::lock_guard lock(mutex_);
    count_operation();
    if (!find(from)) throw FileError(from + ": no such file", ENOENT);
    if (parent_directory(from) != parent_directory(to)) throw FileError("other directory", EXDEV);
    const auto target = find(to);
    if (target && target->is_directory && !target->entries.empty())
      throw FileError(to + ": not empty", ENOTEMPTY);
    change(parent_of(from),
           [old_name = name_of_path(from), name = name_of_path(to)](Entries& entries) {
             const auto found = entries.find(old_name);
             if (found == entries.end()) return;
             entries[name] = found->second;
             entries.erase(old_name);
           });
  }

  void remove_file(const std::string& path) override { remove(path, false); }
  void remove_directory(const std::string& path) override { remove(path, true); }

  std::vector<std::string> list(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    const auto node = find(path);
    if (!node || !node->is_directory) throw FileError(path + ": no such directory", ENOENT);
    std::vector<std::string> names;
    for (const auto& [name, child] : node->entries) names.push_back(name);
    return names;
  }

  std::optional<FileStatus> status(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    const auto node = find(path);
    if (!node) return std::nullopt;
    return FileStatus{node->is_directory, node->live.size()};
  }

  void sync_directory(const std::string& path) override {
    const std::lock_guard lock(mutex_);
    count_operation();
    const auto node = find(path);
    if (!node || !node->is_directory) throw FileError(path + ": no such directory", ENOENT);
    node->durable_entries = node->entries;
    node->changes.clear();
  }

  std::uint64_t free_bytes(const std::string&) override {
    const std::lock_guard lock(mutex_);
    const std::uint64_t used = bytes_in(*root_);
    return capacity_ > used ? capacity_ - used : 0;
  }

 private:
  struct Node;
  using Entries = std::map<std::string, std::shared_ptr<Node>>;
  struct Write {
    std::uint64_t offset;
    std::vector<char> bytes;
  };
  struct Node {
    explicit Node(bool directory) : is_directory(directory) {}
    bool is_directory;
    std::vector<char> live;
    std::vector<char> durable;
    std::vector<Write> writes;  // since the last sync
    Entries entries;
    Entries durable_entries;
    std::vector<std::function<void(Entries&)>> changes;  // since the last sync
  };

  class OpenFile final : public File {
   public:
    OpenFile(FaultyFileSystem& files, std::shared_ptr<Node> node)
        : files_(files), node_(std::move(node)) {}

    std::size_t read_at(std::uint64_t offset, void* buffer, std::size_t size) override {
      const std::lock_guard lock(files_.mutex_);
      if (offset >= node_->live.size()) return 0;
      size = std::min<std::size_t>(size, node_->live.size() - offset);
      if (size > 0) std::memcpy(buffer, node_->live.data() + offset, size);
      return size;
    }
    void write_at(std::uint64_t offset, const void* buffer, std::size_t size) override {
      const std::lock_guard lock(files_.mutex_);
      const char* bytes = static_cast<const char*>(buffer);
      try {
        files_.count_operation();
      } catch (const FileError&) {
        apply({offset, {bytes, bytes + size / 2}});
        throw;
      }
      const std::uint64_t grows =
          offset + size > node_->live.size() ? offset + size - node_->live.size() : 0;
      if (files_.bytes_in(*files_.root_) + grows > files_.capacity_)
        throw FileError("cannot write: No space left on device", ENOSPC);
      apply({offset, {bytes, bytes + size}});
    }
    void truncate(std::uint64_t size) override {
      const std::lock_guard lock(files_.mutex_);
      files_.count_operation();
      node_->live.resize(size);
    }
    std::uint64_t size() override {
      const std::lock_guard lock(files_.mutex_);
      return node_->live.size();
    }
    void sync() override {
      const std::lock_guard lock(files_.mutex_);
      files_.count_operation();
      node_->durable = node_->live;
      node_->writes.clear();
    }
    void close() override {}

   private:
    void apply(Write write) {
      lay_over(node_->live, write);
      node_->writes.push_back(std::move(write));
    }
    FaultyFileSystem& files_;
    std::shared_ptr<Node> node_;
  };

  static void lay_over(std::vector<char>& contents, const Write& write) {
    contents.resize(std::max<std::size_t>(contents.size(), write.offset + write.bytes.size()));
    std::copy(write.bytes.begin(), write.bytes.end(),
              contents.begin() + static_cast<std::ptrdiff_t>(write.offset));
  }

  void count_operation() {
    const std::int64_t now = operations_++;
    if (now >= stop_at_) throw FileError("the process is dead", EIO);
    if (now == fail_at_) throw FileError("cannot write: Input/output error", EIO);
  }

  static void change(Node& directory, std::function<void(Entries&)> action) {
    action(directory.entries);
    directory.changes.push_back(std::move(action));
  }

  void remove(const std::string& path, bool directory) {
    const std::lock_guard lock(mutex_);
    count_operation();
    const auto node = find(path);
    if (!node) throw FileError(path + ": no such file", ENOENT);
    if (node->is_directory != directory || !node->entries.empty())
      throw FileError(path + ": cannot be removed", ENOTEMPTY);
    change(parent_of(path), [name = name_of_path(path)](Entries& entries) { entries.erase(name); });
  }

  static std::shared_ptr<Node> copy(const Node& node) {
    auto result = std::make_shared<Node>(node.is_directory);
    result->live = result->durable = node.live;
    for (const auto& [name, child] : node.entries) result->entries[name] = copy(*child);
    result->durable_entries = result->entries;
    return result;
  }

  static void settle(Node& node, Loss loss, std::mt19937_64& random) {
    if (!node.is_directory) {
      if (loss == Loss::all) node.live = node.durable;
      if (loss == Loss::random) {
        std::vector<char> survived = node.durable;
        for (const Write& write : node.writes)
          if (random() % 2 == 0) lay_over(survived, write);
        node.live = survived;
      }
      node.durable = node.live;
      node.writes.clear();
      return;
    }
    if (loss == Loss::all) node.entries = node.durable_entries;
    if (loss == Loss::random) {
      node.entries = node.durable_entries;
      const std::size_t survive = random() % (node.changes.size() + 1);
      for (std::size_t i = 0; i < survive; ++i) node.changes[i](node.entries);
    }
    node.durable_entries = node.entries;
    node.changes.clear();
    for (const auto& [name, child] : node.entries) settle(*child, loss, random);
  }

  static std::uint64_t bytes_in(const Node& node) {
    std::uint64_t bytes = node.live.size();
    for (const auto& [name, child] : node.entries) bytes += bytes_in(*child);
    return bytes;
  }

  static std::string name_of_path(const std::string& path) {
    return path.substr(path.find_last_of('/') + 1);
  }

  std::shared_ptr<Node> find(const std::string& path) const {
    std::shared_ptr<Node> node = root_;
    for (std::size_t begin = 0; node && begin < path.size();) {
      const std::size_t end = std::min(path.find('/', begin), path.size());
      const std::string name = path.substr(begin, end - begin);
      begin = end + 1;
      if (name.empty() || name == ".") continue;
      const auto found = node->entries.find(name);
      node = found == node->entries.end() ? nullptr : found->second;
    }
    return node;
  }

  Node& parent_of(const std::string& path) const {
    const auto node = find(parent_directory(path));
    if (!node || !node->is_directory) throw FileError(path + ": no such directory", ENOENT);
    return *node;
  }

  std::mutex mutex_;
  std::shared_ptr<Node> root_;
  std::int64_t operations_ = 0;
  std::int64_t stop_at_ = std::numeric_limits<std::int64_t>::max();
  std::int64_t fail_at_ = std::numeric_limits<std::int64_t>::max();
  std::uint64_t capacity_ = std::numeric_limits<std::uint64_t>::max();
};

}  // namespace chaski
