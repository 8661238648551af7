#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <exception>
#include <fmt/format.h>
#include <sstream>
#include <string>
#include <vector>

#include "app/bench_command.h"
#include "app/config_reference_command.h"
#include "app/eval_command.h"
#include "app/export_command.h"
#include "app/generate_command.h"
#include "app/import_command.h"
#include "app/inspect_command.h"
#include "app/mpi_session.h"
#include "app/nearest_name.h"
#include "app/plan_command.h"
#include "app/program_error.h"
#include "app/tokenize_command.h"
#include "app/tokenizer_command.h"
#include "app/train_command.h"
#include "app/version.h"

namespace chaski {
namespace {

void register_commands(CLI::App& app) {
  register_tokenizer_command(app);
  register_tokenize_command(app);
  register_plan_command(app);
  register_train_command(app);
  register_eval_command(app);
  register_generate_command(app);
  register_export_command(app);
  register_import_command(app);
  register_inspect_command(app);
  register_bench_command(app);
  register_config_reference_command(app);
}

std::vector<std::string> names_of_commands(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (!command->get_group().empty()) names.push_back(command->get_name());
  }
  return names;
}

// The subcommand of the command line, or the program itself.
const CLI::App& command_in_use(const CLI::App& app) {
  const auto used = app.get_subcommands();
  return used.empty() ? app : *used.front();
}

// The first long option in a message of CLI11's that is none of `names`, without its dashes.
std::string first_unknown_option(const std::string& message,
                                 const std::vector<std::string>& names) {
  std::istringstream words(message);
  for (std::string word; words >> word;) {
    if (word.rfind("--", 0) != 0) continue;
    const std::string name = word.substr(2, word.find('=') - 2);
    if (std::find(names.begin(), names.end(), name) == names.end()) return name;
  }
  return "";
}

std::string hint_for_option(const CLI::App& app, const std::string& message) {
  const CLI::App& command = command_in_use(app);
  const std::string help = fmt::format("`{}{} --help` shows what can be given", app.get_name(),
                                       &command == &app ? "" : " " + command.get_name());
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back(name);
  }
  const std::string given = first_unknown_option(message, names);
  if (given.empty()) return help;
  const std::string nearest = nearest_name(given, names);
  return nearest.empty() ? help : fmt::format("did you mean --{}? {}", nearest, help);
}

ProgramError describe_parse_error(const CLI::App& app, const CLI::ParseError& error, int argc,
                                  char** argv) {
  const std::vector<std::string> names = names_of_commands(app);
  if (app.get_subcommands().empty() && argc > 1 && argv[1][0] != '-') {
    const std::string nearest = nearest_name(argv[1], names);
    return {fmt::format("unknown command '{}'", argv[1]),
            nearest.empty() ? "`chaski --help` lists the commands"
                            : fmt::format("did you mean `chaski {}`?", nearest),
            kWrongInput};
  }
  std::string message = error.what();
  if (!message.empty()) {
    message[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(message[0])));
  }
  const CLI::App& command = command_in_use(app);
  if (&command != &app) message = command.get_name() + ": " + message;
  return {message, hint_for_option(app, error.what()), kWrongInput};
}

int run(int argc, char** argv) {
  CLI::App app{"Pretrains LLaMA-style language models.", "chaski"};
  app.set_version_flag(
      "--version", [] { return version_text(); }, "Print versions and exit");
  app.require_subcommand(0, 1);
  app.failure_message(CLI::FailureMessage::simple);
  register_commands(app);
  if (argc == 1) {
    let_first_process_speak();
    if (launched_rank() == 0) fmt::print(stderr, "{}", app.help());
    return kWrongInput;
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::RuntimeError& error) {
    return error.get_exit_code();  // a command's own exit code; it has said why
  } catch (const CLI::Success& success) {
    return launched_rank() == 0 ? app.exit(success) : 0;  // --help, --version
  } catch (const CLI::ParseError& error) {
    return report_shared_error(describe_parse_error(app, error, argc, argv));
  }
  return 0;
}

}  // namespace
}  // namespace chaski

int main(int argc, char** argv) {
  using namespace chaski;
  install_terminate_handler();
  int exit_code = 0;
  try {
    exit_code = run(argc, argv);
  } catch (const std::exception& error) {
    return report_error(describe_error(error));
  } catch (...) {
    return report_error({"ended by an unknown exception", "", kRunFailed});
  }
  if (MpiRuntime* mpi = started_mpi_session()) mpi->finish(exit_code);
  return exit_code;
}
