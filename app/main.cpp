#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <exception>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sstream>
#include <string>
#include <vector>

#include "app/commands/commands.h"
#include "app/config/nearest_name.h"
#include "app/console/launcher.h"
#include "app/console/version.h"
#include "app/job/mpi_session.h"
#include "app/job/program_error.h"

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

// Of the subcommands that the help lists.
std::vector<std::string> names_of_commands(const CLI::App& parent) {
  std::vector<std::string> names;
  for (const CLI::App* command : parent.get_subcommands([](const CLI::App*) { return true; })) {
    if (!command->get_group().empty()) names.push_back(command->get_name());
  }
  return names;
}

// The deepest subcommand of the command line, or the program itself.
const CLI::App& command_in_use(const CLI::App& app) {
  const auto used = app.get_subcommands();
  return used.empty() ? app : command_in_use(*used.front());
}

// "chaski bench gemm"
std::string words_of(const CLI::App& command) {
  const CLI::App* parent = command.get_parent();
  return (parent ? words_of(*parent) + " " : "") + command.get_name();
}

// "bench gemm: ", for the beginning of a message; empty for the program itself.
std::string prefix_of(const CLI::App& command) {
  const std::string words = words_of(command);
  const std::size_t space = words.find(' ');
  return space == std::string::npos ? "" : words.substr(space + 1) + ": ";
}

// The first long option in a message of CLI11's that is none of `names`, without its dashes.
std::string first_unknown_option(const std::string& message,
                                 const std::vector<std::string>& names) {
  std::istringstream words(message);
  for (std::string word; words >> word;) {
    if (word.rfind("--", 0) != 0) continue;
    const std::string name = word.substr(2, word.find_first_of("=:,") - 2);
    if (std::find(names.begin(), names.end(), name) == names.end()) return name;
  }
  return "";
}

std::string hint_for_option(const CLI::App& command, const std::string& message) {
  const std::string help = fmt::format("`{} --help` shows what can be given", words_of(command));
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back(name);
  }
  const std::string given = first_unknown_option(message, names);
  if (given.empty()) return help;
  const std::string nearest = nearest_name(given, names);
  return nearest.empty() ? help : fmt::format("did you mean --{}? {}", nearest, help);
}

ProgramError describe_unknown_command(const CLI::App& parent, const std::string& given) {
  const std::string nearest = nearest_name(given, names_of_commands(parent));
  const std::string whose = parent.get_parent() ? " of " + parent.get_name() : "";
  return {fmt::format("unknown command '{}'{}", given, whose),
          nearest.empty() ? fmt::format("`{} --help` lists the commands", words_of(parent))
                          : fmt::format("did you mean `{} {}`?", words_of(parent), nearest),
          kWrongInput};
}

// `rest`: what follows the command in the command line.
ProgramError describe_missing_command(const CLI::App& parent,
                                      const std::vector<std::string>& rest) {
  return {fmt::format("{}must be followed by one of {}{}", prefix_of(parent),
                      fmt::join(names_of_commands(parent), ", "),
                      rest.empty() ? "" : fmt::format(", not by '{}'", rest.front())),
          fmt::format("`{} --help` says what each does", words_of(parent)), kWrongInput};
}

ProgramError describe_parse_error(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App& command = command_in_use(app);
  const std::vector<std::string> rest = command.remaining();
  if (!names_of_commands(command).empty()) {
    if (!rest.empty() && rest.front()[0] != '-') {
      return describe_unknown_command(command, rest.front());
    }
    if (&command != &app) return describe_missing_command(command, rest);
  }
  std::string message = error.what();
  // CLI11 names them backwards.
  if (dynamic_cast<const CLI::ExtrasError*>(&error)) {
    message = fmt::format("the following argument{} not expected: {}",
                          rest.size() == 1 ? " was" : "s were", fmt::join(rest, " "));
  }
  if (!message.empty()) {
    message[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(message[0])));
  }
  return {prefix_of(command) + message, hint_for_option(command, error.what()), kWrongInput};
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
    return report_shared_error(describe_parse_error(app, error));
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
