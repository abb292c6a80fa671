// Embedding and head of a job, where rules ask for them: how they are quantized beside the blocks'
// algorithm, and what that costs.
#ifndef PTQ_WORKER_VOCABULARY_PARTS_H_
#define PTQ_WORKER_VOCABULARY_PARTS_H_

#include <ATen/core/Tensor.h>

#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/cancellation.h"
#include "formats/checkpoint_reader.h"
#include "formats/quantized_checkpoint.h"
#include "models/decoder_model.h"
#include "observers/linear_observer.h"
#include "worker/job_parts.h"
#include "worker/job_plan.h"
#include "worker/report.h"

namespace ptq {

// By rtn whatever the job's algorithm: a table has no inputs to weigh columns by. `planned` has a
// scheme. Errors of `reader`; kCancelled.
absl::StatusOr<QuantizedModule> QuantizeEmbedding(const JobPlan& plan,
                                                  const EffectiveScheme& planned,
                                                  const CheckpointReader& reader,
                                                  const CancellationToken& cancel);
// Its line of the report.
ModuleResult DescribeEmbedding(const JobPlan& plan, const EffectiveScheme& planned);

// The head: as a block's layers are by the job's algorithm, and by opt-rtn where that one tunes
// blocks. Borrows everything; its steps are called in their order.
class HeadQuantizer {
 public:
  // `hidden` [S, T, D]: what the blocks make of the calibration samples on the quantized chain;
  // undefined without calibration data.
  HeadQuantizer(const JobPlan& plan, const EffectiveScheme& planned, const LanguageModelHead& head,
                at::Tensor hidden, const CancellationToken& cancel);

  // The statistics that the algorithm wants, `micro_batch` samples at a time.
  absl::Status Observe(int64_t micro_batch);
  absl::Status Quantize(const std::function<void(double fraction)>& progress);
  // The record's errors on the calibration samples. Nothing without them.
  absl::Status Measure();

  const ModuleResult& result() const { return result_; }
  const AffineQuantizedTensor& record() const { return record_; }

 private:
  const JobPlan& plan_;
  const EffectiveScheme& planned_;
  const LanguageModelHead& head_;
  const at::Tensor hidden_;
  const CancellationToken& cancel_;
  const HeadMethod method_;
  LinearStatistics statistics_;
  AffineQuantizedTensor record_;
  ModuleResult result_;
};

}  // namespace ptq

#endif  // PTQ_WORKER_VOCABULARY_PARTS_H_
