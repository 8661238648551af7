#include <fmt/format.h>
#include <string>

#include "app/config/schema.h"

namespace chaski {
namespace {

constexpr const char* kIntroduction = R"(# The configuration of a run

<!-- Made by `chaski config-reference`; the keys are documented in app/config/keys_*.cpp. -->

`chaski train CONFIG.toml` reads a [TOML](https://toml.io) file of tables and keys. Only what has no default must be
there: the model's shape, the token files and the number of steps.

```toml
[model]
preset = "llama-9m"
vocab_size = 4096          # as the tokenizer has

[data]
train = "corpus.h5"        # made by `chaski tokenize`

[schedule]
steps = 1000
```

- `--set table.key=value` replaces a value on the command line, as often as wanted: `--set optimizer.lr=3e-4`. The value
  is TOML; what is no TOML value is taken as a string, so that `--set data.train=corpus.h5` needs no quotes.
- `chaski train CONFIG.toml --print-config` prints the whole config as it would be used, every default included, with
  these explanations as comments, and ends. The same is kept as `config.toml` in the run's directory and in every
  checkpoint.
- Paths are relative to the folder in which the program is started.
- Everything is checked before any memory is taken. An unknown key or table, a value of the wrong type or out of range, and
  keys that contradict each other end the program with exit code 2 and a line that names the file, the line, the key and
  what is allowed; a mistyped key is told the nearest right one.
- The training is the same whatever number of processes shares it: `global_batch` rows make one step, `micro_batch` of
  them go through the model at once, and `global_batch` must be a multiple of `micro_batch` × replicas.
- SIGTERM or SIGINT (Ctrl-C) make a run save after the step that it is at and end; a second one ends it at once. Under
  `mpirun` send SIGUSR1 instead, to mpirun, which passes it on: mpirun kills its processes half a second after it got
  SIGTERM or Ctrl-C itself, and the run then goes on from its last checkpoint.
)";

std::string escape_cell(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '|') escaped += '\\';
    // Outside code, <name> would be taken for a tag.
    if (c == '<') {
      escaped += "&lt;";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

std::string type_cell(const ConfigKey& key) {
  const std::string allowed = key.allowed_text();
  if (key.choices.size() > 1) return allowed;
  if (!key.choices.empty()) return "only " + allowed;
  return allowed.empty() ? key.type_text() : key.type_text() + ", " + allowed;
}

std::string default_cell(const ConfigKey& key) {
  if (!key.default_text.empty()) return escape_cell(key.default_text);
  return "`" + key.value_text(TrainConfig{}) + "`";
}

}  // namespace

std::string config_reference() {
  std::string text = kIntroduction;
  for (const ConfigTable& table : config_tables()) {
    text += fmt::format("\n## [{}]\n\n{}.\n\n", table.name, escape_cell(table.documentation));
    text += "| key | value | default | meaning |\n|---|---|---|---|\n";
    for (const ConfigKey& key : table.keys) {
      text += fmt::format("| `{}` | {} | {} | {} |\n", key.name, escape_cell(type_cell(key)),
                          default_cell(key), escape_cell(key.documentation));
    }
  }
  return text;
}

}  // namespace chaski
