#include "app/training/start_report.h"

#include <cstdio>
#include <fmt/core.h>

#include "app/console/human_format.h"
#include "app/console/version.h"
#include "kernels/attention/attention.h"

namespace chaski {
namespace {

void line(const char* name, const std::string& value) {
  fmt::print("{:<12}{}\n", name, value);
}

// What is there already, category by category.
std::string describe_memory(const MemoryUsage& memory) {
  std::string text;
  for (int i = 0; i < kNumMemoryCategories; ++i) {
    const auto category = static_cast<MemoryCategory>(i);
    const std::int64_t bytes = memory.current(category);
    if (bytes == 0) continue;
    text +=
        fmt::format("{}{} {}", text.empty() ? "" : ", ", name_of(category), format_bytes(bytes));
  }
  return text;
}

std::string describe_attention(const StartReport& report) {
  const LlamaConfig& model = report.config.model.llama;
  const AttentionShape shape{report.config.parallel.micro_batch, report.config.data.sequence_length,
                             model.num_heads, model.num_kv_heads, model.head_dim};
  return attention_implementation(report.device, shape, types_of(report.choice.precision).compute,
                                  report.config.data.reset_at_documents);
}

std::string describe_layout(const StartReport& report) {
  const Roster& roster = report.membership.roster();
  return fmt::format("{} x {}; {} of {} x {} tokens each",
                     format_number_of(roster.num_replicas(), "replica"),
                     format_number_of(roster.num_stages(), "stage"),
                     format_number_of(report.micro_batches, "micro-batch", "micro-batches"),
                     report.config.parallel.micro_batch, report.config.data.sequence_length);
}

std::string describe_model(const LlamaConfig& model) {
  return fmt::format("{} parameters: {}, hidden {}, {}, heads {}/{} of {}, vocabulary {}{}",
                     format_count(static_cast<double>(model.num_parameters())),
                     format_number_of(model.num_layers, "layer"), model.hidden_size,
                     model.describe_ffn(), model.num_heads, model.num_kv_heads, model.head_dim,
                     model.vocab_size, model.tie_embeddings ? ", tied head" : "");
}

std::string describe_data(const StartReport& report) {
  const TokenStream& stream = report.data.stream();
  const auto sequences = static_cast<std::int64_t>(report.data.training()->num_sequences());
  const double epochs = static_cast<double>(report.config.schedule.steps) *
                        static_cast<double>(report.config.parallel.global_batch) /
                        static_cast<double>(sequences);
  return fmt::format(
      "{} tokens in {}; {}, {:.2f} epochs in the schedule",
      format_count(static_cast<double>(stream.num_tokens())),
      format_number_of(static_cast<std::int64_t>(stream.num_documents()), "document"),
      format_number_of(sequences, "sequence"), epochs);
}

}  // namespace

void print_start(const StartReport& report) {
  line("chaski", fmt::format("{} ({})", program_version(), program_commit()));
  for (const std::string& device : report.device_lines) line("device", device);
  if (report.choice.backend == Backend::cuda) line("attention", describe_attention(report));
  line("GEMM", fmt::format("{:.0f} GFLOP/s measured, all processes together", report.gemm_ceiling));
  line("MPI", report.membership.communicator().runtime().description());
  line("layout", describe_layout(report));
  line("precision", describe_precision(report.choice));
  line("model", describe_model(report.config.model.llama));
  line("data", describe_data(report));
  line("memory", describe_memory(report.device.memory()));
  line("output", report.config.run.output);
  if (!report.checkpoint.empty()) {
    line("from", fmt::format("{}, step {}", report.checkpoint, report.step));
  }
  if (report.data.validation() == nullptr) {
    line("validation", "none: the token files have no validation part");
  }
  std::fflush(stdout);
}

}  // namespace chaski
