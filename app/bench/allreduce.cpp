#include <algorithm>
#include <fmt/core.h>
#include <iterator>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <sys/resource.h>

#include "app/bench/model.h"
#include "app/bench/report.h"
#include "app/commands/bench.h"
#include "app/console/human_format.h"
#include "app/console/option_checks.h"
#include "app/job/mpi_session.h"
#include "kernels/elementwise/elementwise.h"
#include "model/huggingface.h"
#include "model/parameter.h"
#include "parallel/mpi/communicator.h"
#include "parallel/reduction/gradient_reducer.h"

namespace chaski {
namespace {

struct BenchAllreduceOptions {
  BenchModel model;
  int repetitions = 10;
  bool json = false;
};

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// One way of doing it: seconds until the last process is done and CPU seconds of all processes.
struct Way {
  const char* name;
  std::function<void()> run;
  bool sums;  // the gradients are sums over the processes afterwards
  std::vector<double> seconds{};
  std::vector<double> cpu{};
};

class AllreduceBenchmark {
 public:
  AllreduceBenchmark(Communicator& communicator, const BenchAllreduceOptions& options)
      : communicator_(communicator),
        options_(options),
        device_(Device::create_cpu(options.model.threads)),
        parameters_(*device_) {
    for (const WeightShape& weight : huggingface_weights(options.model.config()))
      parameters_.add(weight.name, weight.kind, weight.layer, weight.shape);
    parameters_.allocate_gradients([](const Parameter&) { return true; });
    gradients_ = parameters_.all_gradients();
    copy_ = device_->allocate(DType::f32, {gradients_.num_elements()}, MemoryCategory::gradients);
    fill(copy_.tensor(), 0.0f);
    std::vector<int> ranks(static_cast<std::size_t>(communicator.size()));
    std::iota(ranks.begin(), ranks.end(), 0);
    reducer_ = std::make_unique<GradientReducer>(communicator, ranks, 0, parameters_);
  }

  nlohmann::json run() {
    Way ways[] = {
        {"gradient reducer", [this] { reduce(); }, true},
        {"MPI_Iallreduce", [this] { reduce_by_mpi(); }, true},
        {"copy in memory", [this] { copy(gradients_, copy_.tensor()); }, false},
    };
    for (int i = -1; i < options_.repetitions; ++i) {
      for (Way& way : ways) run_once(way, i >= 0);
    }
    return report(ways);
  }

 private:
  void reduce() {
    for (std::int64_t i = parameters_.size(); i-- > 0;) reducer_->gradients_ready(i, 1);
    reducer_->finish();
  }

  void reduce_by_mpi() {
    constexpr std::int64_t kMost = 1 << 30;  // of one call
    for (std::int64_t at = 0; at < gradients_.num_elements(); at += kMost) {
      const std::int64_t count = std::min(kMost, gradients_.num_elements() - at);
      MPI_Request request = MPI_REQUEST_NULL;
      MPI_Iallreduce(MPI_IN_PLACE, gradients_.f32() + at, static_cast<int>(count), MPI_FLOAT,
                     MPI_SUM, communicator_.handle(), &request);
      communicator_.wait_until([&] {
        int done = 0;
        MPI_Test(&request, &done, MPI_STATUS_IGNORE);
        return done != 0 ? Progress::done : Progress::none;
      });
    }
  }

  void run_once(Way& way, bool counts) {
    fill(gradients_, 1.0f);
    communicator_.barrier();
    const double cpu_before = cpu_seconds();
    const double seconds = timed(way.run);
    double totals[] = {cpu_seconds() - cpu_before};
    communicator_.all_reduce_sum(std::span<double>(totals));
    const double slowest = communicator_.all_reduce_max(seconds);
    check_sums(way);
    if (!counts) return;
    way.seconds.push_back(slowest);
    way.cpu.push_back(totals[0]);
  }

  void check_sums(const Way& way) const {
    const auto expected = static_cast<float>(way.sums ? communicator_.size() : 1);
    for (const Parameter& parameter : parameters_) {
      const float* x = parameter.gradient.f32();
      const std::int64_t last = parameter.gradient.num_elements() - 1;
      if (x[0] == expected && x[last] == expected) continue;
      throw std::runtime_error(fmt::format("{}: {} became {} and {}, not {}", way.name,
                                           parameter.name, x[0], x[last], expected));
    }
  }

  template <typename Ways>
  nlohmann::json report(const Ways& ways) const {
    const auto bytes = static_cast<double>(gradients_.num_bytes());
    const double ceiling = bytes / spread_of(std::rbegin(ways)->seconds).best;
    nlohmann::json lines = nlohmann::json::array();
    for (const Way& way : ways) {
      const Spread spread = spread_of(way.seconds);
      nlohmann::json line = to_json(spread);
      line["way"] = way.name;
      line["bytes_per_second"] = bytes / spread.median;
      line["best_bytes_per_second"] = bytes / spread.best;
      line["share"] = bytes / spread.median / ceiling;
      line["cpu_seconds"] = median(way.cpu);
      lines.push_back(line);
    }
    nlohmann::json report;
    report["benchmark"] = "allreduce";
    report["preset"] = options_.model.preset;
    report["processes"] = communicator_.size();
    report["threads_per_process"] = device_->num_threads();
    report["mpi"] = MpiRuntime::library_version();
    report["gradient_bytes"] = gradients_.num_bytes();
    report["sent_bytes_per_process"] = reducer_->bytes_per_step();
    report["buckets"] = reducer_->num_buckets();
    report["lines"] = lines;
    return report;
  }

  Communicator& communicator_;
  const BenchAllreduceOptions& options_;
  std::unique_ptr<Device> device_;
  ParameterSet parameters_;
  Tensor gradients_;
  Buffer copy_;
  std::unique_ptr<GradientReducer> reducer_;
};

void print_allreduce(const nlohmann::json& report) {
  const ReportLine all(report);
  fmt::print("gradients of {}, {}, summed over {}; {}\n\n", all.text("preset"),
             format_bytes(report["gradient_bytes"].get<std::int64_t>()),
             format_number_of(report["processes"].get<int>(), "process", "processes"),
             all.text("mpi"));
  ReportTable table(
      {"way", "GB/s", "best GB/s", "median ms", "best ms", "worst ms", "CPU ms", "share"});
  for (const nlohmann::json& way : report["lines"]) {
    const ReportLine line(way);
    table.add({line.text("way"), line.number("bytes_per_second", 2, 1e-9),
               line.number("best_bytes_per_second", 2, 1e-9), line.milliseconds("median", 2),
               line.milliseconds("best", 2), line.milliseconds("worst", 2),
               line.number("cpu_seconds", 2, 1e3), line.number("share", 3)});
  }
  table.print();
  fmt::print(
      "\nGB/s: bytes of the gradients by the time until the last process is done; CPU ms: of all\n"
      "processes; share: of the ceiling, which is every process copying as many bytes at the same "
      "time\n");
}

void run_bench_allreduce(const BenchAllreduceOptions& options) {
  Communicator communicator(mpi_session());
  if (communicator.size() < 2) {
    throw std::invalid_argument(
        "bench allreduce: needs 2 processes or more, not 1\n"
        "hint: mpirun -n 2 chaski bench allreduce");
  }
  const nlohmann::json report = AllreduceBenchmark(communicator, options).run();
  if (communicator.rank() != 0) return;
  options.json ? print_json(report) : print_allreduce(report);
}

}  // namespace

void register_bench_allreduce(CLI::App& bench) {
  auto options = std::make_shared<BenchAllreduceOptions>();
  CLI::App* command = bench.add_subcommand(
      "allreduce", "Summing gradients over processes, beside MPI's own and a copy; under mpirun");
  options->model.add_to(*command);
  add_count(*command, "--repetitions", options->repetitions, "Sums to measure");
  add_json(*command, options->json);
  command->callback([options] { run_bench_allreduce(*options); });
}

}  // namespace chaski
