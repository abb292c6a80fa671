// What a watched job looks like: one or two lines that fit the terminal, and plain lines for logs.
// Pure text; the live display that draws it is progress_display.h.
#ifndef PTQ_CLIENT_PROGRESS_VIEW_H_
#define PTQ_CLIENT_PROGRESS_VIEW_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "client/console.h"
#include "ptq/v1/quantization_service.pb.h"

namespace ptq {

// A bar of `width` columns that is filled to `fraction`.
std::string RenderBar(double fraction, int width, const TerminalTraits& terminal);

// Thread-compatible.
class ProgressView {
 public:
  // Takes an event in. Returns lines for a log: one when the state or the phase changes, one a
  // block.
  std::vector<std::string> Apply(const v1::JobEvent& event, absl::Time now);
  void SetConnected(bool connected) { connected_ = connected; }

  // Lines of at most `width` columns that show the job at `now`: elapsed and remaining time run on
  // between events.
  std::vector<std::string> Render(const TerminalTraits& terminal, int width, absl::Time now) const;

  const v1::QuantizationJob& job() const { return job_; }

 private:
  double Fraction() const;
  std::string PhaseTitle() const;
  absl::Duration Elapsed(absl::Time now) const;
  std::optional<absl::Duration> Remaining(absl::Time now) const;
  std::string LossText(const v1::BlockResult& block, bool unicode) const;

  v1::QuantizationJob job_;
  absl::Time job_time_;  // when job_ arrived
  std::string last_status_;
  std::optional<v1::BlockResult> last_block_;
  bool connected_ = true;
};

}  // namespace ptq

#endif  // PTQ_CLIENT_PROGRESS_VIEW_H_
