#include "client/progress_view.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"
#include "client/job_watcher.h"
#include "client/text_format.h"

namespace ptq {
namespace {

constexpr int kWidestBar = 40;
constexpr int kNarrowestBar = 8;

absl::Duration ToDuration(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

std::string PhaseWord(const std::string& phase) {
  static constexpr std::array<std::pair<const char*, const char*>, 6> kWords = {{
      {"load", "Loading"},
      {"fisher", "Fisher pass"},
      {"observe", "Observing"},
      {"quantize", "Quantizing"},
      {"evaluate", "Evaluating"},
      {"export", "Exporting"},
  }};
  for (const auto& [name, word] : kWords) {
    if (phase == name) return word;
  }
  return phase;
}

}  // namespace

std::string RenderBar(double fraction, int width, const TerminalTraits& terminal) {
  fraction = std::isfinite(fraction) ? std::clamp(fraction, 0.0, 1.0) : 0.0;
  std::string filled;
  std::string rest;
  if (terminal.unicode) {
    // Eighths of a column keep the bar moving in long blocks.
    static constexpr std::array<const char*, 8> kEighths = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    const int eighths = static_cast<int>(std::floor(fraction * width * 8));
    const int whole = eighths / 8;
    for (int i = 0; i < whole; ++i) filled += "█";
    filled += kEighths[static_cast<size_t>(eighths % 8)];
    for (int i = DisplayWidth(filled); i < width; ++i) rest += "░";
  } else {
    const int whole = static_cast<int>(std::floor(fraction * width));
    filled.assign(static_cast<size_t>(whole), '#');
    rest.assign(static_cast<size_t>(width - whole), '-');
  }
  return Colored(terminal, TextColor::kGreen, filled) + Colored(terminal, TextColor::kDim, rest);
}

std::string ProgressView::PhaseTitle() const {
  switch (job_.state()) {
    case v1::QuantizationJob::QUEUED:
      return "Queued";
    case v1::QuantizationJob::PENDING:
      return "Starting";
    case v1::QuantizationJob::RUNNING:
      return job_.progress().phase().empty() ? "Starting" : PhaseWord(job_.progress().phase());
    case v1::QuantizationJob::SUCCEEDED:
      return "Done";
    case v1::QuantizationJob::FAILED:
      return "Failed";
    case v1::QuantizationJob::CANCELLING:
      return "Cancelling";
    case v1::QuantizationJob::CANCELLED:
      return "Cancelled";
    case v1::QuantizationJob::PAUSED:
      return "Paused";
    case v1::QuantizationJob::EXPIRED:
      return "Expired";
    default:
      return "Waiting";
  }
}

double ProgressView::Fraction() const {
  const v1::Progress& progress = job_.progress();
  if (job_.state() == v1::QuantizationJob::SUCCEEDED) return 1;
  if (progress.blocks_total() == 0) return 0;
  // Observing and quantizing advance through the blocks; the other phases have a bar of their own.
  const std::string& phase = progress.phase();
  const bool in_blocks = phase.empty() || phase == "observe" || phase == "quantize";
  if (!in_blocks) return progress.block_fraction();
  return (progress.blocks_done() + std::clamp(progress.block_fraction(), 0.0, 1.0)) /
         progress.blocks_total();
}

absl::Duration ProgressView::Elapsed(absl::Time now) const {
  const absl::Duration reported = ToDuration(job_.progress().elapsed());
  const bool runs = job_.state() == v1::QuantizationJob::RUNNING;
  return runs ? reported + std::max(now - job_time_, absl::ZeroDuration()) : reported;
}

std::optional<absl::Duration> ProgressView::Remaining(absl::Time now) const {
  if (!job_.progress().has_eta() || job_.state() != v1::QuantizationJob::RUNNING) {
    return std::nullopt;
  }
  const absl::Duration left = ToDuration(job_.progress().eta()) - (now - job_time_);
  return std::max(left, absl::ZeroDuration());
}

std::string ProgressView::LossText(const v1::BlockResult& block, bool unicode) const {
  if (!block.has_loss_first() || !block.has_loss_best()) return "";
  std::string text = "loss " + FormatLoss(block.loss_first()) + (unicode ? " → " : " -> ") +
                     FormatLoss(block.loss_best());
  if (block.loss_first() > 0) {
    text += absl::StrFormat(" (%+.0f %%)", 100 * (block.loss_best() / block.loss_first() - 1));
  }
  return text;
}

std::vector<std::string> ProgressView::Apply(const v1::JobEvent& event, absl::Time now) {
  std::vector<std::string> lines;
  if (event.has_snapshot()) {
    job_ = event.snapshot();
    job_time_ = now;
    std::string status = PhaseTitle();
    if (job_.attempt() > 1 && !HasEnded(job_.state())) {
      status += absl::StrFormat(" (attempt %d)", job_.attempt());
    }
    if (status != last_status_) lines.push_back(status);
    last_status_ = status;
  } else if (event.has_block()) {
    const v1::BlockResult& block = event.block();
    last_block_ = block;
    std::string line = absl::StrFormat("block %d", block.block() + 1);
    if (job_.progress().blocks_total() > 0) {
      line += absl::StrFormat("/%d", job_.progress().blocks_total());
    }
    line += absl::StrFormat("  %s  %.1f s", block.name(), block.seconds());
    const std::string loss = LossText(block, false);
    lines.push_back(loss.empty() ? line : line + "  " + loss);
  }
  return lines;
}

std::vector<std::string> ProgressView::Render(const TerminalTraits& terminal, int width,
                                              absl::Time now) const {
  const v1::Progress& progress = job_.progress();
  const std::string title = absl::StrFormat("%-12s", connected_ ? PhaseTitle() : "Reconnecting");
  std::string counts;
  // A conversion goes through the blocks once for each format: they are not what it counts.
  if (progress.blocks_total() > 0 && !job_.spec().has_convert()) {
    counts = absl::StrFormat("  %d/%d blocks", progress.blocks_done(), progress.blocks_total());
  }
  const bool with_bar = progress.blocks_total() > 0 && job_.state() == v1::QuantizationJob::RUNNING;
  const std::string percent = absl::StrFormat("  %3.0f %%", std::floor(100 * Fraction()));
  const std::string share = (with_bar ? percent : "") + counts;
  // While a job waits no clock runs.
  const bool has_time =
      job_.state() == v1::QuantizationJob::RUNNING || job_.progress().has_elapsed();
  const std::string elapsed = has_time ? "  " + FormatSeconds(Elapsed(now)) : std::string();
  const auto remaining = Remaining(now);
  const std::string left =
      remaining.has_value() ? ", " + FormatSeconds(*remaining) + " left" : std::string();
  // On narrow terminals words go first, then the time, then the blocks.
  std::string tail;
  int room = 0;
  for (const std::string& candidate :
       {share + elapsed + (has_time ? " elapsed" : "") + left, share + elapsed + left, share,
        with_bar ? percent : std::string()}) {
    tail = candidate;
    room = width - DisplayWidth(title) - DisplayWidth(tail) - 1;
    if (room >= (with_bar ? kNarrowestBar : 0)) break;
  }
  std::string first;
  if (with_bar && room >= kNarrowestBar) {
    first = Colored(terminal, TextColor::kBold, title) + " " +
            RenderBar(Fraction(), std::min(room, kWidestBar), terminal) + tail;
  } else {
    first = Colored(terminal, TextColor::kBold, Ellipsize(title, width, terminal.unicode));
    first += Ellipsize(tail, width - DisplayWidth(title), terminal.unicode);
  }
  std::vector<std::string> lines = {first};
  if (last_block_.has_value()) {
    std::string second =
        absl::StrFormat("%-12s %s  %.1f s", "", last_block_->name(), last_block_->seconds());
    const std::string loss = LossText(*last_block_, terminal.unicode);
    if (!loss.empty()) second += "  " + loss;
    lines.push_back(Colored(terminal, TextColor::kDim, Ellipsize(second, width, terminal.unicode)));
  }
  return lines;
}

}  // namespace ptq
