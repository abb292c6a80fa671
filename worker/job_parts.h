// What a job's algorithm stands for: the one place beside the spec that names them all.
#ifndef PTQ_WORKER_JOB_PARTS_H_
#define PTQ_WORKER_JOB_PARTS_H_

#include <functional>
#include <memory>
#include <string>

#include "algorithms/block_quantizer.h"
#include "algorithms/vocabulary_quantizer.h"
#include "observers/observed_block.h"
#include "worker/job_plan.h"
#include "worker/memory_plan.h"

namespace ptq {

// The quantizer of a job, for blocks that are tuned in these micro-batches.
using QuantizerFactory =
    std::function<std::unique_ptr<BlockQuantizer>(const JobPlan&, const MicroBatches&)>;
std::unique_ptr<BlockQuantizer> MakeBlockQuantizer(const JobPlan& plan,
                                                   const MicroBatches& micro_batches);

// What the algorithm asks of the observer.
InputStatistics NeededStatistics(const JobSpec& spec);
// How the head is quantized, where a rule asks for it, and what is to be known of its inputs: as
// layers are by the algorithm, and by opt-rtn where that one tunes blocks.
struct HeadMethod {
  RowMethod method = RowMethod::kRtn;
  InputStatistics statistics = InputStatistics::kNone;
  std::string reason;  // why it is not the job's algorithm; "" if it is
};
HeadMethod HeadMethodOf(const JobSpec& spec);
// Whether blocks are tuned towards their full-precision outputs.
bool NeedsTargets(const JobSpec& spec);
// What a loader makes of a record: rounded to the checkpoint's dtype, then widened for compute.
at::Tensor EffectiveWeight(const JobPlan& plan, const AffineQuantizedTensor& record);

}  // namespace ptq

#endif  // PTQ_WORKER_JOB_PARTS_H_
