// Ten steps of AdamW with clipping and a schedule against torch.optim.AdamW.

#include <cmath>
#include <gtest/gtest.h>

#include "model/stage.h"
#include "optim/adamw.h"
#include "optim/gradient_norm.h"
#include "tests/parity/golden.h"

namespace chaski {
namespace {

class TrainingParity : public testing::TestWithParam<std::tuple<std::string, bool>> {};

// One step over the whole batch, either at once or row by row. Returns the mean loss.
double accumulate_gradients(Stage& stage, const GoldenBatch& batch, bool row_by_row) {
  const std::int64_t rows = row_by_row ? 1 : batch.rows;
  const auto num_targets = static_cast<double>(batch.num_targets());
  double loss = 0.0;
  stage.parameters().zero_gradients();
  for (std::int64_t begin = 0; begin < batch.rows; begin += rows) {
    const DeviceBatch part(stage.parameters().device(), batch, begin, rows);
    stage.forward(0, part.micro_batch(), {}, static_cast<float>(1.0 / num_targets));
    stage.backward(0, part.micro_batch(), {}, nullptr);
    loss += stage.take_loss_totals().sum;
  }
  return loss / num_targets;
}

TEST_P(TrainingParity, TenSteps) {
  const auto& [name, row_by_row] = GetParam();
  const Golden golden(name);
  const Golden::Training& training = golden.training;
  ASSERT_EQ(training.batches.size(), 10u);
  const auto device = parity_device(2);
  Stage stage(*device, golden.config, stage_range(golden.config, 0, 1),
              {.micro_batch = golden.batch.rows,
               .sequence_length = golden.batch.sequence_length,
               .recompute = row_by_row ? Recompute::block : Recompute::elementwise});
  load_weights(golden, stage.parameters());
  const auto optimizer = make_adamw(*device, stage.parameters(), training.adamw);

  for (std::size_t i = 0; i < training.batches.size(); ++i) {
    SCOPED_TRACE("step " + std::to_string(i + 1));
    const double loss = accumulate_gradients(stage, training.batches[i], row_by_row);
    EXPECT_NEAR(loss, training.losses[i], 1e-5 * training.losses[i]);
    const double norm = std::sqrt(gradient_sum_of_squares(stage.parameters()));
    EXPECT_NEAR(norm, training.gradient_norms[i], 1e-5 * training.gradient_norms[i]);
    const double rate = training.schedule.at(static_cast<std::int64_t>(i));
    EXPECT_NEAR(rate, training.learning_rates[i], 1e-12);
    optimizer->step({.updates = static_cast<std::int64_t>(i) + 1,
                     .learning_rate = rate,
                     .gradient_scale = clip_factor(norm, training.clip)});
  }
  for (const Parameter& parameter : stage.parameters()) {
    const std::vector<float>& expected = find(training.weights, parameter.name);
    EXPECT_LE(relative_error(to_vector(parameter.value), expected), 2e-5) << parameter.name;
    // The bound above means something only where the steps moved the weights by much more.
    EXPECT_GE(relative_error(find(golden.weights, parameter.name), expected), 1e-3)
        << parameter.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, TrainingParity,
                         testing::Combine(testing::Values("mha_untied", "gqa_tied", "mqa_odd",
                                                          "documents", "long"),
                                          testing::Bool()),
                         [](const auto& info) {
                           return std::get<0>(info.param) +
                                  (std::get<1>(info.param) ? "_RowByRow" : "_Whole");
                         });

}  // namespace
}  // namespace chaski
