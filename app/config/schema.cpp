#include "app/config/schema.h"

#include <utility>

#include "app/config/keys.h"

namespace chaski {
namespace {

struct TableOfKeys {
  ConfigTable table;
  std::vector<ConfigKey> keys;
};

std::vector<TableOfKeys> all_tables() {
  return {
      {{"run", "The run as a whole"}, run_keys()},
      {{"model", "The shape of the LLaMA model, in Hugging Face's terms"}, model_keys()},
      {{"model.moc", "Mixture-of-Channels, with model.ffn = \"moc\"", {"model.ffn", "moc"}},
       moc_keys()},
      {{"data", "What is read"}, data_keys()},
      {{"optimizer", "How weights are updated"}, optimizer_keys()},
      {{"schedule", "How long, and with which learning rates"}, schedule_keys()},
      {{"parallel", "How a step is divided among processes and in time"}, parallel_keys()},
      {{"fault", "What happens when a process dies"}, fault_keys()},
      {{"evaluation", "Validation during the run"}, evaluation_keys()},
      {{"checkpoint", "When the state is saved, under <output>/checkpoints"}, checkpoint_keys()},
      {{"log", "What is reported"}, log_keys()},
      {{"device", "Where tensors live and in which precision"}, device_keys()},
  };
}

std::vector<ConfigTable> tables_alone() {
  std::vector<ConfigTable> tables;
  for (TableOfKeys& entry : all_tables()) tables.push_back(std::move(entry.table));
  return tables;
}

std::vector<ConfigKey> keys_of_all_tables() {
  std::vector<ConfigKey> keys;
  for (TableOfKeys& entry : all_tables()) {
    for (ConfigKey& key : entry.keys) {
      key.table = entry.table.name;
      keys.push_back(std::move(key));
    }
  }
  return keys;
}

}  // namespace

const std::vector<ConfigTable>& config_tables() {
  static const std::vector<ConfigTable> tables = tables_alone();
  return tables;
}

const std::vector<ConfigKey>& config_keys() {
  static const std::vector<ConfigKey> keys = keys_of_all_tables();
  return keys;
}

const ConfigKey* find_config_key(std::string_view dotted_name) {
  for (const ConfigKey& key : config_keys()) {
    if (key.dotted_name() == dotted_name) return &key;
  }
  return nullptr;
}

}  // namespace chaski
