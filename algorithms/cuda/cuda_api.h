// What libptq_cuda.so offers: one table of functions, found by dlsym under kCudaApiSymbol. C++17,
// no torch headers. Streams are cudaStream_t; every kernel launch returns a cudaError_t as int.
#ifndef PTQ_ALGORITHMS_CUDA_CUDA_API_H_
#define PTQ_ALGORITHMS_CUDA_CUDA_API_H_

#include <cstddef>
#include <cstdint>

#include "algorithms/auto_round/learned_scale_state.h"
#include "algorithms/auto_round/rounding_state.h"
#include "algorithms/auto_round/tuning_state.h"
#include "algorithms/cuda/attention_spans.h"
#include "algorithms/cuda/block_spans.h"
#include "algorithms/cuda/fp8_spans.h"
#include "algorithms/cuda/observer_spans.h"
#include "algorithms/gptq/gptq_tile_state.h"
#include "algorithms/rtn/scale_search_state.h"

namespace ptq {

struct CudaApi {
  static constexpr int kVersion = 6;
  int version;

  // Kernels of algorithms/auto_round: the host loops of the same names, over all groups and units.
  int (*fake_quantize)(const RoundingState& state, void* stream);  // ChooseScales, FakeQuantize
  // KeepCodes and KeepScales if *rates.improved, StepValues, StepRanges, and the next forward pass.
  int (*step_rounding)(const RoundingState& state, const StepRates& rates, void* stream);
  // LossOfTokens, and FinishLoss behind a batch's last micro-batch. So do the two below.
  int (*tuning_loss)(const TuningState& state, void* stream);
  // The two halves of a loss w d'F'd: d from the output; the gradient and the loss from F'd. 16-bit
  // outputs, widths of whole packs of 8.
  int (*tuning_difference)(const TuningState& state, void* stream);
  int (*metric_loss)(const TuningState& state, void* stream);
  int (*fake_quantize_positions)(const LearnedScaleState& state, void* stream);
  // StepPositions, StepFactors, and the next forward pass.
  int (*step_positions)(const LearnedScaleState& state, const StepRates& rates, void* stream);
  // Around a block's products: block_spans.h.
  int (*gather)(const GatherSpans& spans, void* stream);
  int (*rms_norm)(const RmsNormSpans& spans, void* stream);
  int (*rms_norm_backward)(const RmsNormBackwardSpans& spans, void* stream);
  int (*rotary)(const RotarySpans& spans, void* stream);
  int (*gated)(const GatedSpans& spans, void* stream);
  int (*gated_backward)(const GatedSpans& spans, void* stream);
  // Of observers: observer_spans.h.
  int (*row_errors)(const RowErrorSpans& spans, void* stream);
  int (*column_squares)(const ColumnSquareSpans& spans, void* stream);
  int (*sampled_gradient)(const SampledGradientSpans& spans, void* stream);
  // The search of algorithms/rtn/scale_search.h, with the host's bits.
  int (*search_scales)(const ScaleSearchState& state, void* stream);
  int (*solve_gptq_tile)(const GptqTileState& state, void* stream);  // gptq_tile_state.h
  int (*fp8_tiles)(const Fp8TileSpans& spans, void* stream);         // fp8_spans.h
  // attention_spans.h
  int64_t (*attention_workspace)(const AttentionSpans& spans, AttentionDirection direction);
  bool (*run_attention)(const AttentionSpans& spans, AttentionDirection direction, void* stream);
  const char* (*error_string)(int error);

  // libtorch's CUDA side. These may throw c10::Error.
  void* (*current_stream)();
  void (*synchronize)();
  int64_t (*peak_allocated_bytes)();  // since the process began, by the caching allocator
  void (*reset_peak_allocated_bytes)();
  void (*release_cached_memory)();
  // From now on the caching allocator maps pieces of memory into one growing range rather than
  // taking a segment for each size: next to nothing is lost between tensors.
  void (*use_expandable_segments)();
  // Name of the current device, zero-terminated, at most `capacity` bytes.
  void (*device_name)(char* name, size_t capacity);
  int64_t (*device_memory_bytes)();
  int (*compute_capability)();  // 10 · major + minor
  // Of the current device, all processes together, as the driver counts.
  void (*memory_info)(int64_t* free_bytes, int64_t* total_bytes);
  // What the caching allocator has of the device, tensors or not: now, and at most so far.
  int64_t (*reserved_bytes)();
  int64_t (*peak_reserved_bytes)();

  // Page-locked host memory; none where there is not so much. Unlike libtorch's, not rounded up to
  // a power of two.
  void* (*host_alloc)(size_t bytes);
  void (*host_free)(void* memory);

  // A CUDA graph: what runs between begin and end on the current stream (not the default one) is
  // recorded, and runs at each replay. Graphs take their memory from `memory`, which outlives them:
  // what was free in one may be used by the next, so that they don't replay at the same time.
  void* (*graph_memory_create)();
  void (*graph_memory_destroy)(void* memory);
  void* (*graph_create)();
  void (*graph_capture_begin)(void* graph, void* memory);
  void (*graph_capture_end)(void* graph);
  void (*graph_replay)(void* graph);
  void (*graph_destroy)(void* graph);
};

// extern "C" const ptq::CudaApi* ptq_cuda_api();
constexpr const char* kCudaApiSymbol = "ptq_cuda_api";

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_CUDA_CUDA_API_H_
