// Everything about a job that can be known, and refused, before the first weight is read.
#ifndef PTQ_WORKER_JOB_PLAN_H_
#define PTQ_WORKER_JOB_PLAN_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "algorithms/auto_round/auto_round.h"
#include "formats/headers/inspect.h"
#include "formats/quantized_checkpoint.h"
#include "models/decoder_model.h"
#include "worker/spec/job_spec.h"
#include "worker/spec/scheme_rules.h"

namespace ptq {

struct JobPlan {
  JobSpec spec;
  CheckpointInspection inspection;
  // Of every linear layer of the blocks, in the model's order, and of what rules name beside them.
  std::vector<EffectiveScheme> schemes;
  // That of the embedding or the head (ModulePlace); nullptr: it keeps its dtype.
  const EffectiveScheme* OutsideOfBlocks(bool head) const;
  // The dtype of the linear weights in the checkpoint, one for all.
  at::ScalarType stored_dtype = at::kFloat;
  ComputeOptions compute;
  // Of auto-round's products while it tunes; never kAutomatic.
  TuningPrecision tuning_precision = TuningPrecision::kComputeDtype;
  std::vector<std::string> warnings;  // sentences for the report

  ExportPlan MakeExportPlan() const;
  // "fp8" or "bf16", or another compute dtype: "float32".
  std::string TuningPrecisionLabel() const;
};

// The learned-scale recipe, in any of its lengths.
bool LearnsScales(const JobSpec& spec);
// Windows beside the calibration that show whether tuning generalizes: a tenth.
int64_t HeldOutWindows(const JobSpec& spec);
// Windows of the Fisher pass of a model `width` wide; 0: there is none.
int64_t FisherWindows(const JobSpec& spec, int64_t width);

// What `spec` asks for on a device with or without `fp8_products` (HasFp8Products); kAutomatic
// never. kFailedPrecondition: fp8 without them, or where the model does not compute in bfloat16.
absl::StatusOr<TuningPrecision> ResolveTuningPrecision(const JobSpec& spec,
                                                       const ComputeOptions& compute,
                                                       bool fp8_products);

// Checks the spec, the checkpoint's headers, the data files and the rules against each other, and
// chooses the device. kInvalidArgument, kNotFound, kUnimplemented or kFailedPrecondition, naming
// the field, file, tensor or layer; what a user has to change.
absl::StatusOr<JobPlan> PlanJob(const JobSpec& spec);

}  // namespace ptq

#endif  // PTQ_WORKER_JOB_PLAN_H_
