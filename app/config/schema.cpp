#include "app/config/schema.h"

#include <utility>

#include "app/config/keys.h"

namespace chaski {
namespace {

std::vector<ConfigKey> all_keys() {
  std::vector<std::pair<const char*, std::vector<ConfigKey>>> tables = {
      {"run", run_keys()},
      {"model", model_keys()},
      {"model.moc", moc_keys()},
      {"data", data_keys()},
      {"optimizer", optimizer_keys()},
      {"schedule", schedule_keys()},
      {"parallel", parallel_keys()},
      {"fault", fault_keys()},
      {"evaluation", evaluation_keys()},
      {"checkpoint", checkpoint_keys()},
      {"log", log_keys()},
      {"device", device_keys()},
  };
  std::vector<ConfigKey> keys;
  for (auto& [table, table_keys] : tables) {
    for (ConfigKey& key : table_keys) {
      key.table = table;
      keys.push_back(std::move(key));
    }
  }
  return keys;
}

}  // namespace

const std::vector<ConfigTable>& config_tables() {
  static const std::vector<ConfigTable> tables = {
      {"run", "The run as a whole"},
      {"model", "The shape of the LLaMA model, in Hugging Face's terms"},
      {"model.moc", "Mixture-of-Channels, with model.ffn = \"moc\""},
      {"data", "What is read"},
      {"optimizer", "How weights are updated"},
      {"schedule", "How long, and with which learning rates"},
      {"parallel", "How a step is divided among processes and in time"},
      {"fault", "What happens when a process dies"},
      {"evaluation", "Validation during the run"},
      {"checkpoint", "When the state is saved, under <output>/checkpoints"},
      {"log", "What is reported"},
      {"device", "Where tensors live and in which precision"},
  };
  return tables;
}

const std::vector<ConfigKey>& config_keys() {
  static const std::vector<ConfigKey> keys = all_keys();
  return keys;
}

const ConfigKey* find_config_key(std::string_view dotted_name) {
  for (const ConfigKey& key : config_keys()) {
    if (key.dotted_name() == dotted_name) return &key;
  }
  return nullptr;
}

}  // namespace chaski
