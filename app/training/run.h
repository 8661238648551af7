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
#include "app/training/batch_tensors.h"
#include "app/training/channel_statistics.h"
#include "app/training/evaluation.h"
#include "app/training/metrics_log.h"
#include "app/training/step_console.h"
#include "app/training/step_engine.h"
#include "data/background_verification.h"
#include "data/loader.h"
#include "fault/checkpoint/output_lock.h"
#include "fault/checkpoint/writer.h"
#include "kernels/device/device.h"
#include "parallel/mpi/communicator.h"

namespace chaski {

// What the command line of `chaski train` adds to the config.
struct TrainingOptions {
  std::string resume;          // empty: a new run; "auto" or a path
  std::string init_from;       // empty, or a checkpoint whose weights a new run begins with
  std::int64_t max_steps = 0;  // of this call; 0: as many as the schedule has
  bool overfit_batch = false;
};

// One process's part of a training run, from the resolved config to the last checkpoint. All
// processes of the job do the same; rank 0 also owns the output directory, the console and the
// metrics. The constructor reads and checks everything before the first step.
class TrainingRun {
 public:
  TrainingRun(MpiRuntime& runtime, const TrainConfig& config, const TrainingOptions& options);
  ~TrainingRun();

  // Throws what stops the run; returns when it is finished or was asked to stop, with everything
  // saved.
  void run();

 private:
  bool is_root() const { return communicator_.rank() == 0; }
  void claim_output();
  void open_data();
  // Refuses a run that this host has not the memory for.
  void check_memory();
  void create_model();
  void check_model(const LlamaConfig& saved) const;
  void load_checkpoint();
  void open_outputs();
  void print_start() const;

  // One step and what follows it; returns whether the run ends here.
  bool advance(std::int64_t step);
  // Brings the step's micro-batches to the device, where they stay until the next step's.
  void upload_batches(std::int64_t step);
  BatchSource uploaded_batches() const;
  void handle_nonfinite(std::int64_t step);
  void record(std::int64_t step, const StepOutcome& outcome, double seconds, double learning_rate,
              const std::optional<EvaluationResult>& validation,
              const nlohmann::ordered_json& channels);
  // A step's rate beside the best matrix products that this run has seen: at most 1.
  double ceiling_share(double tokens_per_second);
  EvaluationResult validate(std::int64_t updates);
  void save(std::int64_t updates);
  // As save(), in mid-run: a failure is a warning, for the run has more to lose by ending, and the
  // next save may work.
  void try_save(std::int64_t updates);
  // Runs what throws when a save has failed, and warns instead. Whether none has.
  bool survive_failed_save(const std::function<void()>& work) const;
  void report_saves();
  // Says once that the device does not take graphs.
  void report_refused_graphs();
  void start_verification();
  // Warns once the token files were found to be damaged.
  void report_data_damage();
  // With MoC; in the steps that are logged on the console what is to be known of the channels.
  nlohmann::ordered_json observe_channels(std::int64_t updates, bool committed);
  bool is_logged(std::int64_t updates) const;
  void finish(std::int64_t updates);
  // What was taken of the memory, of the process that took most, and what was planned; all
  // processes take part.
  void report_memory();
  CheckpointMetadata metadata(std::int64_t updates) const;
  std::int64_t tokens_per_step() const {
    return config_.parallel.global_batch * config_.data.sequence_length;
  }

  Communicator communicator_;
  TrainConfig config_;
  TrainingOptions options_;
  RunLayout layout_;
  RunFiles files_;
  DeviceChoice device_choice_;
  StopSignal stop_signal_;
  std::unique_ptr<OutputLock> lock_;
  std::string checkpoint_;  // to begin from; empty: none
  std::shared_ptr<const SequenceDataset> training_data_;
  std::shared_ptr<const TokenStream> validation_data_;         // null: none
  std::unique_ptr<BackgroundVerification> data_verification_;  // rank 0
  std::string data_damage_;                                    // what it found
  std::unique_ptr<Device> device_;
  std::vector<std::string> device_lines_;  // of all processes, for the console; rank 0
  double gemm_ceiling_ = 0.0;              // GFLOP/s of all processes together; the best known
  std::unique_ptr<StepEngine> engine_;
  std::unique_ptr<Loader> loader_;
  std::vector<BatchTensors> batches_;  // one a micro-batch of a step
  LearningRateSchedule schedule_;
  std::int64_t first_step_ = 0;
  std::int64_t skipped_in_a_row_ = 0;
  bool told_of_graphs_ = false;
  double seconds_per_step_ = 0.0;  // smoothed, for the remaining time
  std::optional<EvaluationResult> last_validation_;
  std::unique_ptr<CheckpointWriter> writer_;
  static constexpr std::int64_t kNothingSaved = -1;
  // Of the last save that was begun, as long as it is not known to have failed.
  std::int64_t saved_step_ = kNothingSaved;
  std::unique_ptr<MetricsLog> metrics_;        // rank 0
  std::optional<ChannelStatistics> channels_;  // with MoC
  std::unique_ptr<StepConsole> console_;
};

}  // namespace chaski
