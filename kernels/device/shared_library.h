#pragma once

#include <dlfcn.h>
#include <fmt/format.h>
#include <stdexcept>
#include <string>
#include <utility>

namespace chaski {

// A vendor's library that is loaded when it is first needed, so that the program starts where there
// is none and runs that do without do not pay for it. Never closed: such libraries keep threads and
// GPU memory of their own.
class SharedLibrary {
 public:
  // `file` where the loader finds it, else `built_path`, where it was when this was built. Throws
  // std::runtime_error in the loader's words about the former, with `hint` where there is one.
  SharedLibrary(std::string title, const std::string& file, const char* built_path,
                const std::string& hint = "")
      : title_(std::move(title)), handle_(open(file.c_str())) {
    if (handle_ != nullptr) return;
    const char* const refusal = dlerror();
    const std::string reason = refusal == nullptr ? "the loader gives no reason" : refusal;
    handle_ = open(built_path);
    if (handle_ == nullptr)
      throw std::runtime_error(fmt::format("{} cannot be loaded: {}{}{}", title_, reason,
                                           hint.empty() ? "" : "\nhint: ", hint));
  }

  // Throws std::runtime_error where it has no such function.
  template <typename Function>
  void find(const std::string& name, Function& function) const {
    void* const found = dlsym(handle_, name.c_str());
    if (found == nullptr) throw std::runtime_error(fmt::format("{} has no {}", title_, name));
    function = reinterpret_cast<Function>(found);
  }

 private:
  static void* open(const char* path) { return dlopen(path, RTLD_NOW | RTLD_LOCAL); }

  std::string title_;
  void* handle_;
};

}  // namespace chaski
