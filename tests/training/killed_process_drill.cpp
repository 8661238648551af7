// One process of a training run that loses a process: it writes down what it sees, and
// killed_process_test.py judges.
//   killed_process_drill train CONFIG.toml [--set KEY=VALUE]… DIRECTORY
// DIRECTORY/RANK.jsonl gets a line before the first step, one after each, and one of how it ended.
// VICTIM=RANK:COLLECTIVES:TESTS in the environment: that process kills itself once it has begun so
// many collectives since the first step began and, after that, tested so often whether something
// has ended.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fmt/format.h>
#include <fstream>
#include <mpi.h>
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

// Counts what this process asks of MPI, and at the chosen moment ends it.
class Fate {
 public:
  void begin() {
    int rank = -1;
    const char* const text = std::getenv("VICTIM");
    if (text == nullptr || std::sscanf(text, "%d:%d:%d", &rank, &collectives_, &tests_) != 3)
      return;
    armed_ = rank == mpi_session().rank();
  }
  void collective() {
    if (armed_ && collectives_ > 0) --collectives_;
  }
  void test() {
    if (armed_ && collectives_ == 0 && tests_-- == 0) {
      witness_ << Json{{"killed", seconds_now()}}.dump() << std::endl;
      kill(getpid(), SIGKILL);
    }
  }
  std::ofstream& witness() { return witness_; }

 private:
  bool armed_ = false;
  int collectives_ = 0;
  int tests_ = 0;
  std::ofstream witness_;
};

Fate fate;

class Witness {
 public:
  Witness(const TrainConfig& config, const std::string& directory)
      : run_(Membership(mpi_session(), config), config, {}) {
    fate.witness().open(fmt::format("{}/{}.jsonl", directory, mpi_session().rank()));
  }

  void train() {
    note({{"pid", getpid()}, {"stages", hosted_stages()}});
    run_.begin();
    fate.begin();
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
  void note(const Json& line) { fate.witness() << line.dump() << std::endl; }

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
};

}  // namespace
}  // namespace chaski

// Between the program and MPI.
extern "C" {

int PMPIX_Comm_iagree(MPI_Comm comm, int* flag, MPI_Request* request);

int MPI_Iallreduce(const void* from, void* to, int count, MPI_Datatype type, MPI_Op op,
                   MPI_Comm comm, MPI_Request* request) {
  chaski::fate.collective();
  return PMPI_Iallreduce(from, to, count, type, op, comm, request);
}

int MPI_Ibarrier(MPI_Comm comm, MPI_Request* request) {
  chaski::fate.collective();
  return PMPI_Ibarrier(comm, request);
}

int MPIX_Comm_iagree(MPI_Comm comm, int* flag, MPI_Request* request) {
  chaski::fate.collective();
  return PMPIX_Comm_iagree(comm, flag, request);
}

int MPI_Test(MPI_Request* request, int* done, MPI_Status* status) {
  chaski::fate.test();
  return PMPI_Test(request, done, status);
}

}  // extern "C"

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
