#include "server/jobs/progress_tracker.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "server/store/proto_time.h"

namespace ptq {
namespace {

constexpr size_t kRecentBlocks = 10;

}  // namespace

void ProgressTracker::Apply(const JobEvent& event, v1::Progress& progress) {
  if (event.host_peak_bytes > 0) {
    progress.set_host_peak_bytes(std::max(progress.host_peak_bytes(), event.host_peak_bytes));
  }
  if (event.device_peak_bytes > 0) {
    progress.set_device_peak_bytes(std::max(progress.device_peak_bytes(), event.device_peak_bytes));
  }
  switch (event.type) {
    case JobEvent::Type::kStarted:
      progress.set_blocks_total(static_cast<int32_t>(event.blocks_total));
      progress.set_blocks_done(static_cast<int32_t>(event.blocks_resumed));
      progress.set_checkpoint_block(static_cast<int32_t>(event.blocks_resumed));
      progress.set_block_fraction(0);
      break;
    case JobEvent::Type::kPhase:
      progress.set_phase(event.phase);
      progress.set_block_fraction(std::clamp(event.phase_fraction, 0.0, 1.0));
      break;
    case JobEvent::Type::kBlockDone:
      progress.set_blocks_done(static_cast<int32_t>(event.block + 1));
      progress.set_checkpoint_block(static_cast<int32_t>(event.block + 1));
      progress.set_block_fraction(0);
      block_seconds_.push_back(event.seconds);
      if (block_seconds_.size() > kRecentBlocks) block_seconds_.pop_front();
      break;
    default:
      break;
  }
  UpdateEta(progress);
}

void ProgressTracker::UpdateEta(v1::Progress& progress) const {
  progress.clear_eta();
  progress.clear_eta_p90();
  const double begun = progress.phase() == "quantize" ? progress.block_fraction() : 0.0;
  const double left = progress.blocks_total() - progress.blocks_done() - begun;
  if (block_seconds_.empty() || left <= 0) return;
  const double mean = std::accumulate(block_seconds_.begin(), block_seconds_.end(), 0.0) /
                      static_cast<double>(block_seconds_.size());
  std::vector<double> sorted(block_seconds_.begin(), block_seconds_.end());
  std::sort(sorted.begin(), sorted.end());
  const auto rank = static_cast<size_t>(std::ceil(0.9 * static_cast<double>(sorted.size())));
  *progress.mutable_eta() = ToProtoDuration(absl::Seconds(left * mean));
  *progress.mutable_eta_p90() = ToProtoDuration(absl::Seconds(left * sorted[rank - 1]));
}

}  // namespace ptq
