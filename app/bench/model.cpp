#include "app/bench/model.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <stdexcept>

#include "app/console/option_checks.h"

namespace chaski {

void add_choice(CLI::App& command, const char* option, ChoiceReference member,
                std::vector<std::string> choices, const char* text) {
  const auto set = [member, choices](const std::string& name) {
    const auto found = std::find(choices.begin(), choices.end(), name);
    member.set(member.member, static_cast<int>(found - choices.begin()));
  };
  command
      .add_option_function<std::string>(option, set,
                                        fmt::format("{}: {}", text, fmt::join(choices, ", ")))
      ->check(one_of(choices))
      ->default_str(choices.at(static_cast<std::size_t>(member.get(member.member))));
}

void BenchModel::add_to(CLI::App& command) {
  command
      .add_option("--preset", preset,
                  fmt::format("Model shape: {}", fmt::join(llama_preset_names(), ", ")))
      ->check(one_of(llama_preset_names()))
      ->capture_default_str();
  command.add_option("--vocab-size", vocab_size, "Instead of the preset's; 0: the preset's")
      ->check(whole_number_between(0, 1 << 26));
  add_threads(command, threads, "CPU threads of a process; 0: all cores");
}

void BenchDevice::add_to(CLI::App& command) {
  add_device_option(command, device);
  add_precision_option(command, precision);
}

void BenchModel::add_ffn_to(CLI::App& command) {
  add_choice(command, "--ffn", choice(ffn), {"swiglu", "moc"}, "As model.ffn");
  command.add_option("--moc-keep", moc.keep, "As model.moc.keep, a count; 0: the default")
      ->check(whole_number_between(0, MocShape::kMaxChannels));
  add_choice(command, "--moc-pattern", choice(moc.pattern), {"topk", "2:8"},
             "As model.moc.pattern");
  add_choice(command, "--moc-selection", choice(moc.score), {"gate", "silu-magnitude"},
             "As model.moc.selection");
  add_choice(command, "--moc-index", choice(moc_index), {"auto", "uint16", "bitmap"},
             "As model.moc.index");
}

LlamaConfig BenchModel::config() const {
  if (ffn == FeedForwardKind::swiglu &&
      (moc != MocConfig{} || moc_index != MocIndexChoice::automatic)) {
    throw std::invalid_argument(fmt::format(
        "{} is of Mixture-of-Channels, but the network is \"swiglu\"\nhint: add --ffn moc, or "
        "leave it out",
        moc.keep != 0                        ? "--moc-keep"
        : moc.pattern != MocConfig{}.pattern ? "--moc-pattern"
        : moc.score != MocConfig{}.score     ? "--moc-selection"
                                             : "--moc-index"));
  }
  if (moc.pattern == MocPattern::two_of_eight && moc.keep != 0) {
    throw std::invalid_argument(
        fmt::format("--moc-keep {} has no effect where two of each eight channels are kept "
                    "(2:8)\nhint: leave it out",
                    moc.keep));
  }
  LlamaConfig config = llama_preset(preset);
  if (vocab_size > 0) config.vocab_size = vocab_size;
  if (ffn == FeedForwardKind::moc) config.moc = moc;
  config.resolve();
  return config;
}

}  // namespace chaski
