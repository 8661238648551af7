#include "app/plan/links.h"

#include <map>
#include <tuple>

#include "app/plan/dry_run.h"
#include "parallel/membership/message_tags.h"

namespace chaski {

const char* name_of(LinkPurpose purpose) {
  return purpose == LinkPurpose::gradients ? "gradients" : "pipeline";
}

std::vector<Link> plan_links(Device& model, const TrainConfig& config, const Roster& roster) {
  const auto num_processes = static_cast<int>(roster.live_processes().size());
  if (num_processes == 1) return {};
  std::map<std::tuple<int, int, LinkPurpose>, std::int64_t> bytes;
  for (int rank = 0; rank < num_processes; ++rank) {
    for (const Communicator::Sent& sent : dry_run(model, config, roster, rank).sent) {
      const LinkPurpose purpose =
          is_pipeline_tag(sent.tag) ? LinkPurpose::pipeline : LinkPurpose::gradients;
      bytes[{rank, sent.to, purpose}] += sent.bytes;
    }
  }
  std::vector<Link> links;
  for (const auto& [key, sent] : bytes) {
    const auto& [from, to, purpose] = key;
    links.push_back({from, to, purpose, sent});
  }
  return links;
}

}  // namespace chaski
