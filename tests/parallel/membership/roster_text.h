#pragma once

#include <fmt/format.h>
#include <string>

#include "parallel/membership/roster.h"

namespace chaski {

// Who hosts what, for the traces of tests: one line per stage.
inline std::string text_of(const Roster& roster) {
  std::string text;
  for (int stage = 0; stage < roster.num_stages(); ++stage) {
    text += fmt::format("stage {}:", stage);
    for (const Slot slot : roster.replicas_of(stage)) {
      text += fmt::format(" {} on process {}", to_string(slot), roster.process_of(slot));
    }
    text += "\n";
  }
  return text;
}

}  // namespace chaski
