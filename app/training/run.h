#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "app/config/config.h"
#include "app/job/device_choice.h"
#include "app/job/stop_signal.h"
#include "app/step/hosted_model.h"
#include "app/step/membership.h"
#include "app/step/step_runner.h"
#include "app/training/batch_feed.h"
#include "app/training/channel_statistics.h"
#include "app/training/evaluation.h"
#include "app/training/outputs.h"
#include "app/training/run_checkpoints.h"
#include "app/training/run_data.h"
#include "kernels/device/device.h"

namespace chaski {

// What the command line of `chaski train` adds to the config.
struct TrainingOptions {
  CheckpointChoice checkpoint;
  std::int64_t max_steps = 0;  // of this call; 0: as many as the schedule has
  bool overfit_batch = false;
};

// How far a run has come: as of its last commit.
struct RunProgress {
  std::int64_t steps = 0;    // finished, skipped ones included; also the place in the data
  std::int64_t updates = 0;  // of the weights
};

// One process's part of a training run, from the resolved config to the last checkpoint. All
// processes of the job do the same; what one of them does for all (the output directory, the
// console, the metrics) follows from the roster. The constructor reads and checks everything before
// the first step.
class TrainingRun {
 public:
  TrainingRun(Membership membership, const TrainConfig& config, const TrainingOptions& options);
  ~TrainingRun();

  // Throws what stops the run; returns when it is finished or was asked to stop, with everything
  // saved.
  void run();

  // The parts of run(), for whoever does something between two steps. begin() returns whether there
  // is anything to do, advance() whether the run goes on after one more step.
  bool begin();
  bool advance();
  void finish();

  // Makes everything that follows from the roster anew: to be called by all live processes, between
  // two steps. Weights, optimizer state and the place in the data stay as they are. Throws
  // std::logic_error where a process would host a stage that it did not host before: somebody must
  // hand it the weights, for which there is no way yet.
  void adopt(Membership membership);

  const RunProgress& progress() const { return progress_; }
  HostedModel& model() { return *model_; }

 private:
  // What is written of a step once it is committed, and what evaluation and statistics add to it.
  struct StepRecord {
    StepOutcome outcome;
    double seconds = 0.0;
    double learning_rate = 0.0;
    std::optional<EvaluationResult> validation;
    nlohmann::ordered_json channels;
  };

  Communicator& communicator() const { return membership_.communicator(); }
  // Refuses a run that this host has not the memory for.
  void check_memory();
  // By the reporter, which owns the output directory.
  void claim_output();
  void create_device();
  void create_model();
  // Makes all parts that follow from the roster. Returns the stages that are new here, whose
  // weights are zeros.
  std::vector<int> follow_membership();
  void adopt_outputs();
  void load_checkpoint();
  void check_model(const LlamaConfig& saved) const;
  void print_start() const;

  // Does something in which processes talk to each other. When one of them has died or cannot be
  // reached, nobody waits any longer, the state is that of the last commit, and CommunicationError
  // is thrown.
  void do_together(const std::function<void()>& work);
  void abandon();
  // One step and what follows it; whether somebody asked to stop.
  bool step_once();
  void save_last();
  void handle_nonfinite();
  void follow_commit(StepRecord& record);
  void record_pending();
  void show(const StepMetrics& entry);
  bool is_due(std::int64_t every) const { return every > 0 && progress_.steps % every == 0; }
  bool is_last() const { return progress_.steps == config_.schedule.steps; }
  bool is_logged() const;
  // Says how far the run has come.
  [[noreturn]] void end_by(const CommunicationError& failure);

  // A step's rate beside the best matrix products that this run has seen: at most 1.
  double ceiling_share(double tokens_per_second);
  EvaluationResult validate();
  // With MoC; in the steps that are logged on the console what is to be known of the channels.
  nlohmann::ordered_json observe_channels(bool committed);
  // Until no save of this process is in flight: one may wait for a process that has died.
  void wait_for_saves();
  void save();
  // As save(), in mid-run: a failure is a warning, for the run has more to lose by ending, and the
  // next save may work.
  void try_save();
  // Runs what throws when a save has failed, and warns instead. Whether none has.
  bool survive_failed_save(const std::function<void()>& work);
  void report_saves();
  // Says once that the device does not take graphs.
  void report_refused_graphs();
  // What was taken of the memory, of the process that took most, and what was planned; all
  // processes take part.
  void report_memory();
  void report_end();
  CheckpointMetadata metadata() const;
  std::int64_t tokens_per_step() const {
    return config_.parallel.global_batch * config_.data.sequence_length;
  }

  TrainConfig config_;
  TrainingOptions options_;
  Membership membership_;
  DeviceChoice device_choice_;
  StopSignal stop_signal_;
  RunData data_;
  RunOutputs outputs_;
  std::string checkpoint_;  // to begin from; empty: none
  std::unique_ptr<Device> device_;
  std::vector<std::string> device_lines_;  // of all processes, for the console; on the reporter
  double gemm_ceiling_ = 0.0;              // GFLOP/s of all processes together; the best known
  std::int64_t micro_batches_ = 1;         // of a replica in a step
  std::unique_ptr<HostedModel> model_;
  std::unique_ptr<StepRunner> runner_;
  std::unique_ptr<BatchFeed> feed_;
  std::unique_ptr<RunCheckpoints> checkpoints_;
  LearningRateSchedule learning_rate_;
  RunProgress progress_;
  std::int64_t first_step_ = 0;
  std::int64_t last_step_ = 0;
  std::int64_t replicas_equal_at_ = 0;
  std::int64_t skipped_in_a_row_ = 0;
  bool told_of_graphs_ = false;
  double seconds_per_step_ = 0.0;  // smoothed, for the remaining time
  std::optional<StepRecord> pending_record_;
  std::optional<EvaluationResult> last_validation_;
  static constexpr std::int64_t kNothingSaved = -1;
  // Of the last save that was begun, as long as it is not known to have failed.
  std::int64_t saved_step_ = kNothingSaved;
  std::optional<ChannelStatistics> channels_;  // with MoC
};

}  // namespace chaski
