// One process of a training run that loses a process: it writes down what it sees, and
// killed_process_test.py judges.
//   killed_process_drill train CONFIG.toml [--set KEY=VALUE]… DIRECTORY
// DIRECTORY/RANK.jsonl gets a line before the first step, one after each, and one of how it ended.
#include <chrono>
#include <fmt/format.h>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <unistd.h>
#include <vector>

#include "app/config/config.h"
#include "app/job/mpi_session.h"
#include "app/training/run.h"
#include "fault/checkpoint/state_digest.h"

namespace chaski {
namespace {

using Json = nlohmann::ordered_json;

// Of the clock that Python calls monotonic.
double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class Witness {
 public:
  Witness(const TrainConfig& config, const std::string& directory)
      : run_(Membership(mpi_session(), config), config, {}),
        file_(fmt::format("{}/{}.jsonl", directory, mpi_session().rank())) {}

  void train() {
    note({{"pid", getpid()}, {"stages", hosted_stages()}});
    run_.begin();
    try {
      while (run_.advance()) note(state());
      note(state());
      run_.finish();
      note({{"finished", true}});
    } catch (const PeerFailure& failure) {
      Json last = state();
      last["failure"] = failure.what();
      last["seconds"] = seconds_now();
      note(last);
    }
  }

 private:
  void note(const Json& line) { file_ << line.dump() << std::endl; }

  std::vector<int> hosted_stages() {
    std::vector<int> stages;
    for (const auto& stage : run_.model().stages()) stages.push_back(stage->stage);
    return stages;
  }

  // How far this process has come, with what, and what its memory is taken by.
  Json state() {
    Json digests;
    Json memory;
    for (const auto& stage : run_.model().stages()) {
      const ParameterSet& parameters = stage->model->parameters();
      digests.push_back(
          fmt::format("{:016x}", state_digest(parameters, stage->optimizer->state())));
      const MemoryUsage& usage = parameters.device().memory();
      for (int i = 0; i < kNumMemoryCategories; ++i) {
        const auto category = static_cast<MemoryCategory>(i);
        memory[name_of(category)] = usage.current(category);
      }
    }
    const RunProgress& progress = run_.progress();
    return {{"steps", progress.steps},
            {"updates", progress.updates},
            {"digests", digests},
            {"memory", memory}};
  }

  TrainingRun run_;
  std::ofstream file_;
};

}  // namespace
}  // namespace chaski

int main(int argc, char** argv) {
  using namespace chaski;
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  std::vector<std::string> overrides;
  for (std::size_t i = 2; i + 2 < arguments.size(); i += 2) overrides.push_back(arguments[i + 1]);
  MpiRuntime& runtime = mpi_session();
  Witness(load_config(arguments[1], overrides), arguments.back()).train();
  runtime.finish(0);
  return 0;
}
