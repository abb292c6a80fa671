#include "worker/job_parts.h"

#include "algorithms/auto_round/auto_round.h"
#include "algorithms/gptq/gptq.h"
#include "algorithms/rtn/opt_rtn.h"
#include "algorithms/rtn/rtn.h"

namespace ptq {

std::unique_ptr<BlockQuantizer> MakeBlockQuantizer(const JobPlan& plan,
                                                   const MicroBatches& micro_batches) {
  switch (plan.spec.algorithm) {
    case Algorithm::kAutoRound: {
      AutoRoundOptions options;
      options.method =
          LearnsScales(plan.spec) ? AutoRoundMethod::kLearnedScale : AutoRoundMethod::kPaper;
      options.iterations = plan.spec.EffectiveIterations();
      options.batch_size = plan.spec.batch_size;
      options.micro_batch = micro_batches.tuning;
      options.precision = plan.tuning_precision;
      return std::make_unique<AutoRoundBlockQuantizer>(plan.stored_dtype, options);
    }
    case Algorithm::kGptq:
      return std::make_unique<GptqBlockQuantizer>(plan.stored_dtype, GptqOptions{});
    case Algorithm::kOptRtn:
      return std::make_unique<OptRtnBlockQuantizer>(plan.stored_dtype);
    case Algorithm::kRtn:
      return std::make_unique<RtnBlockQuantizer>(plan.stored_dtype);
  }
  return nullptr;
}

InputStatistics NeededStatistics(const JobSpec& spec) {
  switch (spec.algorithm) {
    case Algorithm::kAutoRound:
      return LearnsScales(spec) ? InputStatistics::kImportance : InputStatistics::kNone;
    case Algorithm::kGptq:
      return InputStatistics::kHessian;
    case Algorithm::kOptRtn:
      return InputStatistics::kImportance;
    case Algorithm::kRtn:
      return InputStatistics::kNone;
  }
  return InputStatistics::kNone;
}

HeadMethod HeadMethodOf(const JobSpec& spec) {
  switch (spec.algorithm) {
    case Algorithm::kAutoRound:
      return {RowMethod::kOptRtn, InputStatistics::kImportance,
              "head: opt-rtn (tuning is by the outputs of blocks, and this is behind them)"};
    case Algorithm::kGptq:
      return {RowMethod::kGptq, InputStatistics::kHessian, ""};
    case Algorithm::kOptRtn:
      return {RowMethod::kOptRtn, InputStatistics::kImportance, ""};
    case Algorithm::kRtn:
      return {};
  }
  return {};
}

bool NeedsTargets(const JobSpec& spec) { return spec.algorithm == Algorithm::kAutoRound; }

at::Tensor EffectiveWeight(const JobPlan& plan, const AffineQuantizedTensor& record) {
  return Dequantize(record, plan.stored_dtype).to(plan.compute.device, plan.compute.dtype);
}

}  // namespace ptq
