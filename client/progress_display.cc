#include "client/progress_display.h"

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/text_format.h"

namespace ptq {
namespace {

constexpr absl::Duration kRedrawPeriod = absl::Milliseconds(100);
constexpr int kTransferBar = 24;
// Speeds over shorter times say nothing.
constexpr absl::Duration kSpeedAfter = absl::Milliseconds(300);

}  // namespace

std::string RenderTransfer(const std::string& title, int64_t done_bytes, int64_t total_bytes,
                           absl::Duration elapsed, const TerminalTraits& terminal, int width) {
  const double fraction =
      total_bytes > 0 ? static_cast<double>(done_bytes) / static_cast<double>(total_bytes) : 1.0;
  std::string tail = "  " + FormatBytes(done_bytes) + " of " + FormatBytes(total_bytes);
  if (elapsed >= kSpeedAfter && done_bytes > 0) {
    const double speed = static_cast<double>(done_bytes) / absl::ToDoubleSeconds(elapsed);
    tail += "  " + FormatBytes(static_cast<int64_t>(speed)) + "/s";
    const double left = static_cast<double>(total_bytes - done_bytes) / speed;
    if (left >= 1) tail += "  " + FormatSeconds(absl::Seconds(left)) + " left";
  }
  const int bar = kTransferBar + 2;
  const int room = width - DisplayWidth(tail) - bar;
  if (room < 16) return Ellipsize(title + tail, width, terminal.unicode);
  return Ellipsize(title, room, terminal.unicode) + "  " +
         RenderBar(fraction, kTransferBar, terminal) + tail;
}

void TransferDisplay::OnBegin(const std::string& title, int64_t total_bytes, bool routine) {
  title_ = title;
  routine_ = routine;
  done_bytes_ = 0;
  total_bytes_ = total_bytes;
  begin_ = absl::Now();
  drawn_ = absl::InfinitePast();
  OnBytes(0);
}

void TransferDisplay::OnBytes(int64_t bytes) {
  done_bytes_ += bytes;
  if (!terminal_.interactive) return;
  const absl::Time now = absl::Now();
  if (now - drawn_ < kRedrawPeriod) return;
  drawn_ = now;
  region_.Draw({RenderTransfer(title_, done_bytes_, total_bytes_, now - begin_, terminal_,
                               terminal_.Width() - 1)});
}

void TransferDisplay::OnEnd() {
  region_.Clear();
  const absl::Duration elapsed = absl::Now() - begin_;
  if (routine_ && elapsed < kSpeedAfter) return;
  std::string line = title_ + ": " + FormatBytes(total_bytes_);
  if (elapsed >= kSpeedAfter) {
    line += absl::StrFormat(" in %.1f s (%s/s)", absl::ToDoubleSeconds(elapsed),
                            FormatBytes(static_cast<int64_t>(static_cast<double>(total_bytes_) /
                                                             absl::ToDoubleSeconds(elapsed))));
  }
  out_ << line << "\n" << std::flush;
}

void TransferDisplay::OnNote(const std::string& note) { region_.PrintAbove(note + "\n"); }

JobDisplay::JobDisplay(std::ostream& out, const TerminalTraits& terminal)
    : out_(out), terminal_(terminal), region_(out) {
  if (terminal_.interactive) thread_ = std::thread([this] { RedrawLoop(); });
}

JobDisplay::~JobDisplay() { Close(); }

void JobDisplay::RedrawLoop() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!closed_) {
    DrawLocked();
    wake_.wait_for(lock, absl::ToChronoMilliseconds(kRedrawPeriod));
  }
}

void JobDisplay::DrawLocked() {
  // The last column stays free: some terminals wrap as soon as it is written.
  if (seen_) region_.Draw(view_.Render(terminal_, terminal_.Width() - 1, absl::Now()));
}

void JobDisplay::NoteLocked(const std::string& note) {
  if (terminal_.interactive) {
    region_.PrintAbove(note + "\n");
  } else {
    out_ << note << "\n" << std::flush;
  }
}

void JobDisplay::OnEvent(const v1::JobEvent& event) {
  std::lock_guard<std::mutex> lock(mutex_);
  const std::vector<std::string> lines = view_.Apply(event, absl::Now());
  seen_ = true;
  if (terminal_.interactive) return;
  for (const std::string& line : lines) out_ << line << "\n";
  out_ << std::flush;
}

void JobDisplay::OnDisconnected() {
  std::lock_guard<std::mutex> lock(mutex_);
  view_.SetConnected(false);
  NoteLocked("The connection to the server broke; trying again.");
}

void JobDisplay::OnReconnected() {
  std::lock_guard<std::mutex> lock(mutex_);
  view_.SetConnected(true);
  NoteLocked("Connected again.");
}

void JobDisplay::Close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    wake_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
  region_.Clear();
}

}  // namespace ptq
