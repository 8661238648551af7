#include "tests/cuda_model/program_symbols.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cxxabi.h>
#include <elf.h>
#include <fstream>
#include <iterator>
#include <link.h>
#include <stdexcept>

namespace chaski::cuda_model {
namespace {

std::string demangled(const char* name) {
  int status = 0;
  char* const readable = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string result = status == 0 ? readable : name;
  std::free(readable);
  return result;
}

std::string without_tag(std::string name) {
  const std::string tag = "[abi:chaski_shared]";
  const auto place = name.find(tag);
  return place == std::string::npos ? name : name.erase(place, tag.size());
}

/// Where the program was loaded, relative to the addresses in its file.
std::uintptr_t load_offset() {
  std::uintptr_t offset = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* result) {
        *static_cast<std::uintptr_t*>(result) = info->dlpi_addr;
        return 1;  // the program itself comes first
      },
      &offset);
  return offset;
}

struct Function {
  std::uintptr_t address;
  const char* name;
};

class Symbols {
 public:
  Symbols() {
    std::ifstream file("/proc/self/exe", std::ios::binary);
    image_.assign(std::istreambuf_iterator<char>(file), {});
    const auto* header = at<ElfW(Ehdr)>(0);
    const auto* sections = at<ElfW(Shdr)>(header->e_shoff);
    for (int i = 0; i < header->e_shnum; ++i) {
      if (sections[i].sh_type == SHT_SYMTAB) read(sections, sections[i]);
    }
    std::sort(shared_.begin(), shared_.end(),
              [](const auto& a, const auto& b) { return a.address < b.address; });
  }

  const std::vector<SharedVariable>& shared() const { return shared_; }

  std::string function(std::uintptr_t address) const {
    for (const auto& function : functions_) {
      if (function.address == address) return demangled(function.name);
    }
    char text[32];
    std::snprintf(text, sizeof(text), "%p", reinterpret_cast<void*>(address));
    return text;
  }

 private:
  template <typename T>
  const T* at(std::size_t offset) const {
    if (offset >= image_.size()) throw std::runtime_error("/proc/self/exe: not a whole ELF file");
    return reinterpret_cast<const T*>(image_.data() + offset);
  }

  void read(const ElfW(Shdr) * sections, const ElfW(Shdr) & table) {
    const std::uintptr_t offset = load_offset();
    const auto* symbols = at<ElfW(Sym)>(table.sh_offset);
    const char* const names = at<char>(sections[table.sh_link].sh_offset);
    for (std::size_t i = 0; i < table.sh_size / sizeof(ElfW(Sym)); ++i) {
      const ElfW(Sym)& symbol = symbols[i];
      const int type = ELF64_ST_TYPE(symbol.st_info);
      if (type == STT_FUNC && symbol.st_value != 0) {
        functions_.push_back({offset + symbol.st_value, names + symbol.st_name});
      } else if (type == STT_OBJECT && symbol.st_shndx != SHN_UNDEF &&
                 symbol.st_shndx < SHN_LORESERVE && symbol.st_size > 0) {
        const char* const name = names + symbol.st_name;
        if (std::strstr(name, "B13chaski_shared") == nullptr) continue;
        shared_.push_back({reinterpret_cast<unsigned char*>(offset + symbol.st_value),
                           symbol.st_size, without_tag(demangled(name)),
                           ELF64_ST_BIND(symbol.st_info) != STB_LOCAL});
      }
    }
  }

  std::vector<char> image_;
  std::vector<SharedVariable> shared_;
  std::vector<Function> functions_;
};

const Symbols& symbols() {
  static const Symbols instance;
  return instance;
}

}  // namespace

const std::vector<SharedVariable>& shared_variables() {
  return symbols().shared();
}

std::string function_name(const void* function) {
  return symbols().function(reinterpret_cast<std::uintptr_t>(function));
}

}  // namespace chaski::cuda_model
