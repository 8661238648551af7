#include "app/bench/step_profile.h"

#include <array>
#include <cstring>
#include <fmt/core.h>
#include <optional>
#include <string>
#include <vector>

#include "app/bench/report.h"
#include "app/plan/step_gemms.h"
#include "model/ffn.h"

namespace chaski {
namespace {

// Which part of the step an op other than a product belongs to, in the order of the report.
struct PartOfOp {
  const char* op;
  const char* part;
};
constexpr PartOfOp kParts[] = {
    {"attention_forward", "attention forward"},
    {"attention_backward", "attention backward"},
    {"rotary_forward", "rotary"},
    {"rotary_backward", "rotary"},
    {"rmsnorm_forward", "norms forward"},
    {"add_rmsnorm_forward", "norms forward"},
    {"rmsnorm_recompute", "norms backward"},
    {"rmsnorm_backward", "norms backward"},
    {"swiglu_forward", "SwiGLU forward"},
    {"swiglu_backward", "SwiGLU backward"},
    {"moc_forward", "MoC forward"},
    {"moc_backward", "MoC backward"},
    {"moc_products_forward", "MoC products forward"},
    {"moc_products_backward", "MoC products backward"},
    {"moc_count", "MoC counts"},
    {"cross_entropy", "cross-entropy"},
    {"embedding_forward", "embedding"},
    {"embedding_backward", "embedding"},
    {"adamw_step", "optimizer"},
    {"fill", "zeroing"},
    {"sum_of_squares", "gradient norm"},
    {"gradient_reduction", "all-reduce"},
    {"agreement", "agreement"},
};
constexpr const char* kOther = "other ops";

struct Part {
  std::string name;
  double seconds = 0.0;
  std::int64_t calls = 0;
  double flops = 0.0;  // of products
};

// All of a product's shape but the tokens, which may be those of a last tile.
std::array<std::int64_t, 2> weight_shape(GemmPass pass, const std::array<std::int64_t, 3>& shape) {
  const auto [m, n, k] = shape;
  return pass == GemmPass::weight_gradient ? std::array{m, n} : std::array{n, k};
}

// The name under which a product of a step is reported, if it is one.
std::optional<std::string> product_name(const std::vector<StepGemm>& gemms,
                                        const Profile::Entry& entry) {
  for (const StepGemm& gemm : gemms) {
    if (std::strcmp(entry.op, profiled_name(gemm.pass)) != 0) continue;
    if (weight_shape(gemm.pass, entry.shape) == weight_shape(gemm.pass, {gemm.m, gemm.n, gemm.k})) {
      return gemm.name();
    }
  }
  return std::nullopt;
}

// With those that only Mixture-of-Channels has.
std::vector<StepGemm> products_of(const ProfiledSteps& steps) {
  std::vector<StepGemm> gemms = step_gemms(steps.model, steps.tokens, steps.backend);
  if (steps.model.moc) {
    gemms.push_back({"gates", GemmPass::forward, ffn_tile(steps.backend, steps.tokens),
                     steps.model.intermediate_size, steps.model.hidden_size, 0.0});
  }
  return gemms;
}

bool is_product(const Profile::Entry& entry) {
  return std::strncmp(entry.op, "gemm_", 5) == 0;
}

class PartList {
 public:
  explicit PartList(const ProfiledSteps& steps) : gemms_(products_of(steps)) {
    for (const StepGemm& gemm : gemms_) part(gemm.name());
    part("other products");
    for (const PartOfOp& known : kParts) part(known.part);
    part(kOther);
  }

  void add(const Profile::Entry& entry) {
    Part& to = part(name_of_part(entry));
    to.seconds += entry.seconds;
    to.calls += entry.calls;
    if (is_product(entry)) {
      const auto [m, n, k] = entry.shape;
      to.flops += 2.0 * static_cast<double>(entry.calls) * static_cast<double>(m) *
                  static_cast<double>(n * k);
    }
  }

  const std::vector<Part>& parts() const { return parts_; }

 private:
  std::string name_of_part(const Profile::Entry& entry) const {
    if (is_product(entry)) return product_name(gemms_, entry).value_or("other products");
    for (const PartOfOp& known : kParts) {
      if (std::strcmp(known.op, entry.op) == 0) return known.part;
    }
    return kOther;
  }

  Part& part(const std::string& name) {
    for (Part& part : parts_) {
      if (part.name == name) return part;
    }
    return parts_.emplace_back(Part{name});
  }

  std::vector<StepGemm> gemms_;
  std::vector<Part> parts_;
};

}  // namespace

nlohmann::json profile_report(const Profile& profile, const ProfiledSteps& steps) {
  PartList list(steps);
  for (const Profile::Entry& entry : profile.entries()) list.add(entry);
  double accounted = 0.0;
  nlohmann::json report = nlohmann::json::array();
  const auto add_line = [&](const Part& part) {
    nlohmann::json line;
    line["part"] = part.name;
    line["seconds"] = part.seconds / steps.steps;
    line["share"] = part.seconds / steps.seconds;
    line["calls"] = static_cast<double>(part.calls) / steps.steps;
    if (part.flops > 0.0) {
      line["gflops"] = 1e-9 * part.flops / part.seconds;
      line["gemm_share"] = line["gflops"].get<double>() / steps.gemm_ceiling;
    }
    report.push_back(line);
    accounted += part.seconds;
  };
  for (const Part& part : list.parts()) {
    if (part.calls > 0) add_line(part);
  }
  add_line({"rest", steps.seconds - accounted});
  return report;
}

void print_profile(const nlohmann::json& parts) {
  ReportTable table({"part of the step", "ms", "share", "calls", "GFLOP/s", "of ceiling"});
  const auto if_there = [](const nlohmann::json& line, const char* key, int digits) {
    return line.contains(key) ? ReportLine(line).number(key, digits) : "";
  };
  for (const nlohmann::json& line : parts) {
    const ReportLine cells(line);
    table.add({cells.text("part"), cells.number("seconds", 2, 1e3), cells.number("share", 4),
               fmt::format("{:g}", line["calls"].get<double>()), if_there(line, "gflops", 0),
               if_there(line, "gemm_share", 3)});
  }
  fmt::print("\n");
  table.print();
  fmt::print(
      "\nshare: of the step's time; of ceiling: of the best product before and after the steps\n");
}

}  // namespace chaski
