#include "app/config/schema.h"

#include "app/config/keys.h"

namespace chaski {
namespace {

std::vector<ConfigTable> all_tables() {
  std::vector<ConfigTable> tables{
      {"run", "The run as a whole", run_keys()},
      {"model", "The shape of the LLaMA model, in Hugging Face's terms", model_keys()},
      {"model.moc",
       "Mixture-of-Channels, with model.ffn = \"moc\"",
       moc_keys(),
       {"model.ffn", "moc"}},
      {"data", "What is read", data_keys()},
      {"optimizer", "How weights are updated", optimizer_keys()},
      {"schedule", "How long, and with which learning rates", schedule_keys()},
      {"parallel", "How a step is divided among processes and in time", parallel_keys()},
      {"fault", "What happens when a process dies", fault_keys()},
      {"evaluation", "Validation during the run", evaluation_keys()},
      {"checkpoint", "When the state is saved, under <output>/checkpoints", checkpoint_keys()},
      {"log", "What is reported", log_keys()},
      {"device", "Where tensors live and in which precision", device_keys()},
  };
  for (ConfigTable& table : tables) {
    for (ConfigKey& key : table.keys) key.table = table.name;
  }
  return tables;
}

}  // namespace

const std::vector<ConfigTable>& config_tables() {
  static const std::vector<ConfigTable> tables = all_tables();
  return tables;
}

const ConfigTable* find_config_table(std::string_view name) {
  for (const ConfigTable& table : config_tables()) {
    if (table.name == name) return &table;
  }
  return nullptr;
}

const ConfigKey* find_config_key(std::string_view dotted_name) {
  for (const ConfigTable& table : config_tables()) {
    for (const ConfigKey& key : table.keys) {
      if (key.dotted_name() == dotted_name) return &key;
    }
  }
  return nullptr;
}

}  // namespace chaski
