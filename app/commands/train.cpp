#include <fmt/core.h>
#include <memory>

#include "app/commands/commands.h"
#include "app/config/config.h"
#include "app/console/launcher.h"
#include "app/console/option_checks.h"
#include "app/job/mpi_session.h"
#include "app/training/run.h"

namespace chaski {
namespace {

struct TrainArguments {
  std::string config;
  std::vector<std::string> overrides;
  TrainingOptions options;
  bool print_config = false;
};

void run_train(const TrainArguments& arguments) {
  const TrainConfig config = load_config(arguments.config, arguments.overrides);
  if (arguments.print_config) {
    if (launched_rank() == 0) fmt::print("{}", to_toml(config));
    return;
  }
  TrainingRun(Membership(mpi_session(), config), config, arguments.options).run();
}

}  // namespace

void register_train_command(CLI::App& app) {
  auto arguments = std::make_shared<TrainArguments>();
  CLI::App* command = app.add_subcommand("train", "Train a model as a config file says");
  TrainingOptions& options = arguments->options;
  command->add_option("config", arguments->config, "TOML file; docs/config.md explains its keys")
      ->required()
      ->type_name("CONFIG.toml");
  command
      ->add_option("--set", arguments->overrides,
                   "Override a key of the config, e.g. --set optimizer.lr=1e-3; may be repeated")
      ->type_name("KEY=VALUE")
      ->take_all()
      ->allow_extra_args(false);
  command->add_flag("--print-config", arguments->print_config,
                    "Print the whole config with all defaults and exit");
  auto* resume = command
                     ->add_option("--resume", options.checkpoint.resume,
                                  "Go on from a checkpoint: a path, or auto for the newest intact "
                                  "one of the output directory, if there is any")
                     ->expected(0, 1)
                     ->default_str("auto")
                     ->type_name("auto|PATH");
  command
      ->add_option("--init-from", options.checkpoint.init_from,
                   "Begin a new run with the weights of this checkpoint")
      ->type_name("PATH")
      ->excludes(resume);
  command
      ->add_option("--max-steps", options.max_steps,
                   "Save and end after so many steps of this call; the schedule stays as it is")
      ->check(whole_number_from(1));
  command->add_flag("--overfit-batch", options.overfit_batch,
                    "Every step trains on the first step's batch: its loss must fall towards 0");
  command->callback([arguments] { run_train(*arguments); });
}

}  // namespace chaski
