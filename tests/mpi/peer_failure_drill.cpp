// A process is killed in the middle of a step. The others must notice (PeerFailure), give up the
// step, make a communicator of those alive, and run the same step again by a roster with a
// takeover. Every process that finishes leaves a file DIRECTORY/done.N with what it saw;
// run_drill.sh judges, because mpirun's own exit status tells of the victim.
// At the moment "error" the process is not killed but has an error of its own, for which the others
// must not make a new roster: all end.
//   peer_failure_drill DIRECTORY VICTIM MOMENT        MOMENT: reduce, vote or error
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fmt/format.h>
#include <fstream>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <unistd.h>
#include <vector>

#include "parallel/membership/roster.h"
#include "parallel/membership/step_transaction.h"
#include "parallel/mpi/communicator.h"
#include "parallel/reduction/gradient_reducer.h"

namespace chaski {
namespace {

constexpr std::int64_t kElements = 2 << 20;
constexpr int kSteps = 8;
constexpr int kFatalStep = 4;

struct Drill {
  std::string directory;
  int victim = 0;
  std::string moment;
};

void fail_if(const Drill& drill, int process, bool first_try, int step, const char* moment) {
  if (first_try && process == drill.victim && step == kFatalStep && drill.moment == moment) {
    if (drill.moment == "error") throw std::bad_alloc();
    kill(getpid(), SIGKILL);
  }
}

class Process {
 public:
  Process(MpiRuntime& runtime, Drill drill)
      : drill_(std::move(drill)),
        communicator_(std::make_unique<Communicator>(runtime)),
        roster_(Roster::initial(communicator_->size(), 1, communicator_->size())),
        process_(communicator_->rank()),
        device_(Device::create_cpu(1)),
        parameters_(*device_) {
    for (int i = 0; i < 4; ++i) {
      parameters_.add(fmt::format("p{}", i), ParameterKind::ffn, i, {kElements / 4});
    }
    parameters_.allocate();
    parameters_.allocate_gradients([](const Parameter&) { return true; });
    connect();
  }

  void run() {
    for (int step = 0; step < kSteps; ++step) {
      while (!complete(step)) recover();
    }
  }

  std::string report() const {
    return fmt::format("ok failures={} dead={} version={} live={}\n", failures_, dead_,
                       roster_.version(), roster_.live_processes().size());
  }

 private:
  void connect() {
    reducer_ = std::make_unique<GradientReducer>(*communicator_, roster_.ranks_of_stage(0), 0,
                                                 parameters_);
    transaction_ = std::make_unique<StepTransaction>(*communicator_, [this] { reducer_->abort(); });
  }

  // Whether the step was applied; false after a failure.
  bool complete(int step) {
    transaction_->begin(step, roster_.version());
    try {
      run_passes(step);
      fail_if(drill_, process_, failures_ == 0, step, "vote");
      if (!transaction_->agree({}).commit) throw std::runtime_error("a step was not committed");
    } catch (const PeerFailure& failure) {
      ++failures_;
      std::fprintf(stderr, "process %d, step %d: %s\n", process_, step, failure.what());
      if (transaction_->abort(StepFailure::peer).failed) {
        throw std::runtime_error("another process cannot go on");
      }
      return false;
    } catch (...) {
      transaction_->abort(StepFailure::here);
      throw;
    }
    check_sums(step);
    return true;
  }

  // Each hosted replica adds (replica + 1) · (step + 1) to every element.
  void run_passes(int step) {
    parameters_.zero_gradients();
    for (const Slot slot : roster_.slots_of(process_)) {
      const Tensor all = parameters_.all_gradients();
      for (std::int64_t i = 0; i < all.num_elements(); ++i) {
        all.f32()[i] += static_cast<float>((slot.replica + 1) * (step + 1));
      }
    }
    for (int parameter = 3; parameter >= 0; --parameter) {
      reducer_->gradients_ready(parameter, 1);
      if (parameter == 2) fail_if(drill_, process_, failures_ == 0, step, "reduce");
      if (parameter == 2) fail_if(drill_, process_, failures_ == 0, step, "error");
    }
    reducer_->finish();
  }

  void check_sums(int step) const {
    const int n = roster_.num_replicas();
    const auto expected = static_cast<float>(n * (n + 1) / 2 * (step + 1));
    const Tensor all = parameters_.all_gradients();
    for (std::int64_t i = 0; i < all.num_elements(); ++i) {
      if (all.f32()[i] != expected) {
        throw std::runtime_error(
            fmt::format("step {} element {}: {} instead of {}", step, i, all.f32()[i], expected));
      }
    }
  }

  void recover() {
    auto survivors = communicator_->shrink();
    const std::vector<int> dead = communicator_->dead_ranks();
    if (dead.size() != 1) {
      throw std::runtime_error(fmt::format("{} processes are dead", dead.size()));
    }
    dead_ = roster_.process_at(dead[0]);
    const auto& live = roster_.live_processes();
    const int by = live[static_cast<std::size_t>(dead[0] + 1) % live.size()];
    roster_ = roster_.with_takeover(dead_, by);
    reducer_.reset();
    transaction_.reset();
    communicator_ = std::move(survivors);
    if (communicator_->rank() != roster_.rank_of(process_)) {
      throw std::runtime_error("ranks after the failure differ from the roster's");
    }
    connect();
  }

  Drill drill_;
  std::unique_ptr<Communicator> communicator_;
  Roster roster_;
  int process_;
  std::unique_ptr<Device> device_;
  ParameterSet parameters_;
  std::unique_ptr<GradientReducer> reducer_;
  std::unique_ptr<StepTransaction> transaction_;
  int failures_ = 0;
  int dead_ = -1;
};

}  // namespace
}  // namespace chaski

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const chaski::Drill drill{argv[1], std::atoi(argv[2]), argv[3]};
  chaski::MpiRuntime runtime(&argc, &argv);
  const int rank = runtime.rank();
  std::string report;
  try {
    if (!runtime.survives_failures()) throw std::runtime_error("failures are not survived");
    chaski::Process process(runtime, drill);
    process.run();
    report = process.report();
  } catch (const std::exception& error) {
    report = fmt::format("failed: {}\n", error.what());
  }
  std::ofstream(fmt::format("{}/done.{}", drill.directory, rank)) << report;
  runtime.finish(0);
}
