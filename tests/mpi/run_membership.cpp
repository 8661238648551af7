// Runs whose parts are made anew while they go on, and processes that host more than one slot. Run
// with any number of processes.
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <gtest/gtest.h>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <unistd.h>
#include <vector>
#include <xxhash.h>

#include "app/job/mpi_session.h"
#include "app/training/replica_check.h"
#include "app/training/run.h"
#include "data/token_file_writer.h"
#include "fault/checkpoint/state_digest.h"
#include "kernels/elementwise/elementwise.h"
#include "tests/parallel/membership/roster_text.h"

namespace chaski {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kSteps = 6;
constexpr int kVocabulary = 97;
// Of two losses whose sums are taken in another order.
constexpr double kSummingTolerance = 2e-6;

// A folder that all processes of the job share, or one of this process alone; removed with it.
class Folder {
 public:
  explicit Folder(Communicator& communicator) : communicator_(communicator) {
    std::string path;
    if (communicator.rank() == 0) {
      path = (fs::temp_directory_path() / "chaski-run-XXXXXX").string();
      path = ::mkdtemp(path.data());
    }
    communicator.broadcast(path, 0);
    path_ = path;
  }
  ~Folder() {
    communicator_.barrier();
    std::error_code ignored;
    if (communicator_.rank() == 0) fs::remove_all(path_, ignored);
  }
  std::string path(const std::string& name) const { return (path_ / name).string(); }

 private:
  Communicator& communicator_;
  fs::path path_;
};

void write_part(TokenFileWriter& writer, Part part, std::uint64_t tokens) {
  writer.begin_part(part, {.num_tokens = tokens, .num_documents = 1, .num_bytes = 4 * tokens});
  std::uint32_t word = part == Part::train ? 1 : 2;
  for (std::uint64_t i = 0; i < tokens; ++i) {
    word = (word * 31 + 7 * static_cast<std::uint32_t>(i % 5)) % (kVocabulary - 3);
    const auto id = static_cast<std::uint16_t>(3 + word);
    writer.add_tokens(std::as_bytes(std::span(&id, 1)));
  }
  writer.add_document_end(tokens);
  writer.end_part();
}

std::string write_tokens(const Folder& folder, Communicator& communicator) {
  const std::string path = folder.path("tokens.h5");
  if (communicator.rank() == 0) {
    TokenFileWriter writer(path, false);
    TokenFileHeader header;
    header.vocab_size = kVocabulary;
    header.split = "by hand";
    header.tokenizer_model = "none is needed";
    const XXH128_hash_t hash =
        XXH3_128bits(header.tokenizer_model.data(), header.tokenizer_model.size());
    header.tokenizer_fingerprint = fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
    writer.write_header(header);
    write_part(writer, Part::train, 4000);
    write_part(writer, Part::validation, 700);
    writer.commit();
  }
  communicator.barrier();
  return path;
}

struct RunCase {
  int replicas = 1;
  int stages = 1;
  bool moc = false;
  const char* schedule = "1f1b";
};

TrainConfig config_of(const RunCase& tested, const std::string& tokens, const std::string& output) {
  const std::string text = fmt::format(
      R"([run]
output = "{}"
threads = 1
check_replicas = 2
[model]
hidden_size = 32
intermediate_size = 64
num_layers = 3
num_heads = 4
vocab_size = {}
ffn = "{}"
[data]
train = "{}"
sequence_length = 16
[optimizer]
lr = 1e-2
[schedule]
steps = {}
warmup_steps = 2
[parallel]
data = {}
pipeline = {}
micro_batch = 2
global_batch = 12
schedule = "{}"
[evaluation]
every = 2
tokens = 0
[checkpoint]
every = 2
[log]
every = 2
console = "off"
dead_channel_steps = 2
)",
      output, kVocabulary, tested.moc ? "moc" : "swiglu", tokens, kSteps, tested.replicas,
      tested.stages, tested.schedule);
  return parse_config(text, "test");
}

// What a run wrote, by step.
struct Written {
  std::vector<double> losses;
  std::vector<double> norms;
  std::vector<double> validation;
};

Written read_metrics(const std::string& output) {
  Written written;
  std::ifstream file(output + "/metrics.jsonl");
  for (std::string line; std::getline(file, line);) {
    const nlohmann::json step = nlohmann::json::parse(line);
    written.losses.push_back(step.at("loss"));
    written.norms.push_back(step.at("grad_norm"));
    if (step.contains("validation_loss")) written.validation.push_back(step["validation_loss"]);
  }
  return written;
}

void expect_alike(const std::vector<double>& a, const std::vector<double>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_NEAR(a[i], b[i], kSummingTolerance * std::abs(a[i])) << "step " << i + 1;
  }
}

void expect_alike(const Written& a, const Written& b) {
  ASSERT_EQ(a.losses.size(), static_cast<std::size_t>(kSteps));
  ASSERT_EQ(a.validation.size(), static_cast<std::size_t>(kSteps / 2));
  expect_alike(a.losses, b.losses);
  expect_alike(a.norms, b.norms);
  expect_alike(a.validation, b.validation);
}

std::vector<std::uint64_t> digests_of(HostedModel& model) {
  std::vector<std::uint64_t> digests;
  for (const auto& stage : model.stages()) {
    digests.push_back(state_digest(stage->model->parameters(), stage->optimizer->state()));
  }
  return digests;
}

std::unique_ptr<Communicator> all_processes() {
  return std::make_unique<Communicator>(mpi_session());
}

// This process by itself.
std::unique_ptr<Communicator> this_process() {
  MPI_Comm self = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_SELF, &self);
  return std::make_unique<Communicator>(mpi_session(), self);
}

// The layout on fewer processes than it has slots: `live` of them, the others' slots dealt out.
Roster roster_on(const RunCase& tested, int live) {
  const int slots = tested.replicas * tested.stages;
  Roster roster = Roster::initial(tested.replicas, tested.stages, slots);
  for (int process = slots - 1; process >= live; --process) {
    roster = roster.with_takeover(process, process % live);
  }
  return roster;
}

class RunMembershipTest : public ::testing::Test {
 protected:
  // Where the roster has one live process, each process runs the whole run by itself.
  Written run_on(const RunCase& tested, const Roster& roster, Folder& folder,
                 const std::string& tokens) {
    const bool alone = roster.live_processes().size() == 1;
    const std::string output =
        folder.path(fmt::format("{}-{}", ++num_runs_, alone ? mpi_session().rank() : 0));
    TrainingRun run(Membership(alone ? this_process() : all_processes(), roster),
                    config_of(tested, tokens, output), {});
    run.run();
    all_->barrier();
    return read_metrics(output);
  }

  int num_runs_ = 0;
  int processes_ = mpi_session().size();
  std::unique_ptr<Communicator> all_ = all_processes();
};

// The layouts that fit so many processes, one slot each.
std::vector<RunCase> cases_for(int processes) {
  std::vector<RunCase> cases;
  for (const RunCase& tested : std::vector<RunCase>{{1, 1},
                                                    {1, 1, false, "gpipe"},
                                                    {2, 1},
                                                    {1, 2},
                                                    {3, 1},
                                                    {1, 3},
                                                    {2, 2},
                                                    {2, 1, true},
                                                    {1, 2, true, "gpipe"}}) {
    if (tested.replicas * tested.stages == processes) cases.push_back(tested);
  }
  return cases;
}

TEST_F(RunMembershipTest, MadeAnewInTheMiddleNoBitChanges) {
  for (const RunCase& tested : cases_for(processes_)) {
    Folder folder(*all_);
    const std::string tokens = write_tokens(folder, *all_);
    const Roster roster = roster_on(tested, processes_);
    TrainingRun undisturbed(Membership(all_processes(), roster),
                            config_of(tested, tokens, folder.path("a")), {});
    undisturbed.run();
    TrainingRun made_anew(Membership(all_processes(), roster),
                          config_of(tested, tokens, folder.path("b")), {});
    ASSERT_TRUE(made_anew.begin());
    bool goes_on = true;
    while (goes_on) {
      goes_on = made_anew.advance();
      // After the second step a save is in flight.
      if (made_anew.progress().steps == 2 || made_anew.progress().steps == 5) {
        made_anew.adopt(Membership(all_processes(), roster));
      }
    }
    made_anew.finish();
    EXPECT_EQ(digests_of(undisturbed.model()), digests_of(made_anew.model()));
    all_->barrier();
    const Written a = read_metrics(folder.path("a"));
    const Written b = read_metrics(folder.path("b"));
    EXPECT_EQ(a.losses, b.losses);
    EXPECT_EQ(a.norms, b.norms);
    EXPECT_EQ(a.validation, b.validation);
    EXPECT_EQ(a.losses.size(), static_cast<std::size_t>(kSteps));
  }
}

TEST_F(RunMembershipTest, OneProcessForAllSlotsHasTheSameLosses) {
  for (const RunCase& tested : cases_for(processes_)) {
    Folder folder(*all_);
    const std::string tokens = write_tokens(folder, *all_);
    // Of one slot, too: what all layouts did wrong alike would be seen.
    const RunCase whole{.moc = tested.moc};
    const Written expected = run_on(whole, roster_on(whole, 1), folder, tokens);
    expect_alike(expected, run_on(tested, roster_on(tested, processes_), folder, tokens));
    expect_alike(expected, run_on(tested, roster_on(tested, 1), folder, tokens));
  }
}

// Two processes for four slots: each with both replicas of a stage, both stages of a replica, or a
// stage of each replica.
TEST_F(RunMembershipTest, TwoProcessesForFourSlotsHaveTheSameLosses) {
  if (processes_ != 2) GTEST_SKIP() << "needs two processes";
  const Roster all = Roster::initial(2, 2, 4);
  Folder folder(*all_);
  const std::string tokens = write_tokens(folder, *all_);
  for (const bool moc : {false, true}) {
    const RunCase tested{.replicas = 2, .stages = 2, .moc = moc};
    const Written alone = run_on(tested, roster_on(tested, 1), folder, tokens);
    for (const Roster& roster :
         {all.with_takeover(1, 0).with_takeover(3, 2), all.with_takeover(2, 0).with_takeover(3, 1),
          all.with_takeover(3, 0).with_takeover(2, 1)}) {
      SCOPED_TRACE(text_of(roster));
      expect_alike(alone, run_on(tested, roster, folder, tokens));
    }
  }
}

// A process leaves between two steps and its neighbour goes on with both replicas' rows; where it
// was the one that reported, with the output directory, too.
TEST_F(RunMembershipTest, TakenOverInTheMiddleTheLossesStay) {
  if (processes_ != 2) GTEST_SKIP() << "needs two processes";
  Folder folder(*all_);
  const std::string tokens = write_tokens(folder, *all_);
  const RunCase tested{.replicas = 2};
  const Roster roster = roster_on(tested, 2);
  const Written undisturbed = run_on(tested, roster, folder, tokens);
  for (const int leaving : {0, 1}) {
    const std::string output = folder.path(fmt::format("without-{}", leaving));
    auto run = std::make_unique<TrainingRun>(Membership(all_processes(), roster),
                                             config_of(tested, tokens, output), TrainingOptions{});
    ASSERT_TRUE(run->begin());
    for (int step = 0; step < 3; ++step) ASSERT_TRUE(run->advance());
    const bool leaves = all_->rank() == leaving;
    if (leaves) run.reset();
    all_->barrier();
    if (!leaves) {
      run->adopt(Membership(this_process(), roster.with_takeover(leaving, 1 - leaving)));
      while (run->advance()) {
      }
      run->finish();
    }
    all_->barrier();
    expect_alike(undisturbed, read_metrics(output));
  }
}

// The weights of a stage that nobody hands over would be zeros.
TEST_F(RunMembershipTest, AStageWithoutItsWeightsIsRefused) {
  if (processes_ != 2) GTEST_SKIP() << "needs two processes";
  Folder folder(*all_);
  const std::string tokens = write_tokens(folder, *all_);
  const RunCase tested{.stages = 2};
  const Roster roster = roster_on(tested, 2);
  TrainingRun run(Membership(all_processes(), roster),
                  config_of(tested, tokens, folder.path("run")), {});
  ASSERT_TRUE(run.begin());
  ASSERT_TRUE(run.advance());
  if (all_->rank() == 0) {
    EXPECT_THROW(run.adopt(Membership(this_process(), roster.with_takeover(1, 0))),
                 std::logic_error);
  }
}

TEST_F(RunMembershipTest, ReplicasThatDifferStopTheRun) {
  if (processes_ < 2) GTEST_SKIP() << "needs two processes";
  Folder folder(*all_);
  const RunCase tested{.replicas = processes_};
  const auto device = Device::create_cpu(1);
  const TrainConfig config = config_of({.replicas = 1}, "none.h5", "none");
  HostedModel model(*device, hosted_model_options(config, 1));
  const Membership membership(all_processes(), roster_on(tested, processes_));
  model.adopt(membership);
  model.initialize(1);
  EXPECT_NO_THROW(check_replicas(membership, model, 10, 0));
  const Tensor weight = model.stages().front()->model->parameters()[1].value;
  if (all_->rank() == 1) weight.f32()[5] = std::nextafter(weight.f32()[5], 2.0f);
  try {
    check_replicas(membership, model, 20, 10);
    FAIL() << "the difference was not seen";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("after step 20"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("rank 1: stage 0 is "), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("at step 10 they were equal"), std::string::npos);
  }
}

}  // namespace
}  // namespace chaski
