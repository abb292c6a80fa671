// Launchers of this project's kernels: cudaStream_t in, cudaError_t out. C++17, no torch.
#ifndef PTQ_ALGORITHMS_CUDA_KERNELS_H_
#define PTQ_ALGORITHMS_CUDA_KERNELS_H_

#include <cstdint>

#include "algorithms/auto_round/learned_scale_state.h"
#include "algorithms/auto_round/rounding_state.h"
#include "algorithms/auto_round/tuning_state.h"
#include "algorithms/cuda/block_spans.h"
#include "algorithms/cuda/fp8_spans.h"
#include "algorithms/cuda/observer_spans.h"
#include "algorithms/gptq/gptq_tile_state.h"
#include "algorithms/rtn/scale_search_state.h"

namespace ptq {

// See CudaApi (cuda_api.h).
int LaunchFakeQuantize(const RoundingState& state, void* stream);
int LaunchStepRounding(const RoundingState& state, const StepRates& rates, void* stream);
int LaunchTuningLoss(const TuningState& state, void* stream);
int LaunchTuningDifference(const TuningState& state, void* stream);
int LaunchMetricLoss(const TuningState& state, void* stream);
int LaunchGather(const GatherSpans& spans, void* stream);
int LaunchRmsNorm(const RmsNormSpans& spans, void* stream);
int LaunchRmsNormBackward(const RmsNormBackwardSpans& spans, void* stream);
int LaunchRotary(const RotarySpans& spans, void* stream);
int LaunchGated(const GatedSpans& spans, void* stream);
int LaunchGatedBackward(const GatedSpans& spans, void* stream);
int LaunchRowErrors(const RowErrorSpans& spans, void* stream);
int LaunchColumnSquares(const ColumnSquareSpans& spans, void* stream);
int LaunchSampledGradient(const SampledGradientSpans& spans, void* stream);
int LaunchFp8Tiles(const Fp8TileSpans& spans, void* stream);
int LaunchFakeQuantizePositions(const LearnedScaleState& state, void* stream);
int LaunchStepPositions(const LearnedScaleState& state, const StepRates& rates, void* stream);
int LaunchSearchScales(const ScaleSearchState& state, void* stream);
int LaunchSolveGptqTile(const GptqTileState& state, void* stream);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_CUDA_KERNELS_H_
