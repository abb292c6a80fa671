// Turns a worker's events into a job's Progress, with an estimate of the time that is left.
#ifndef PTQ_SERVER_JOBS_PROGRESS_TRACKER_H_
#define PTQ_SERVER_JOBS_PROGRESS_TRACKER_H_

#include <deque>

#include "absl/time/time.h"
#include "ptq/v1/quantization_service.pb.h"
#include "worker/spec/job_event.h"

namespace ptq {

// Thread-compatible; one run of one worker.
class ProgressTracker {
 public:
  // Brings `progress` up to date with `event`. The ETA covers the blocks that are left: the mean of
  // the last ten blocks' times, and for eta_p90 their 90 % quantile; both are absent before the
  // first block has ended and after the last one.
  void Apply(const JobEvent& event, v1::Progress& progress);

 private:
  void UpdateEta(v1::Progress& progress) const;

  std::deque<double> block_seconds_;
};

}  // namespace ptq

#endif  // PTQ_SERVER_JOBS_PROGRESS_TRACKER_H_
