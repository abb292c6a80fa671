// libptq_cuda.so: the table of cuda_api.h. The one file that sees libtorch's CUDA headers.
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGraph.h>
#include <ATen/cuda/MemPool.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <cstring>

#include "algorithms/cuda/cuda_api.h"
#include "algorithms/cuda/kernels.h"

namespace ptq {
namespace {

using at::cuda::CUDAGraph;

cudaDeviceProp Properties() {
  cudaDeviceProp properties;
  C10_CUDA_CHECK(cudaGetDeviceProperties(&properties, c10::cuda::current_device()));
  return properties;
}

const char* ErrorString(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
void* CurrentStream() { return c10::cuda::getCurrentCUDAStream().stream(); }
void Synchronize() { c10::cuda::device_synchronize(); }
c10::CachingDeviceAllocator::DeviceStats Statistics() {
  return c10::cuda::CUDACachingAllocator::getDeviceStats(c10::cuda::current_device());
}
int64_t PeakAllocatedBytes() {
  return Statistics().allocated_bytes[0].peak;  // 0: all pools together
}
void ResetPeakAllocatedBytes() {
  c10::cuda::CUDACachingAllocator::resetPeakStats(c10::cuda::current_device());
}
void ReleaseCachedMemory() { c10::cuda::CUDACachingAllocator::emptyCache(); }
void UseExpandableSegments() {
  c10::CachingAllocator::setAllocatorSettings("expandable_segments:True");
}
void DeviceName(char* name, size_t capacity) {
  const cudaDeviceProp properties = Properties();
  std::strncpy(name, properties.name, capacity - 1);
  name[capacity - 1] = '\0';
}
int64_t DeviceMemoryBytes() { return static_cast<int64_t>(Properties().totalGlobalMem); }

void MemoryInfo(int64_t* free_bytes, int64_t* total_bytes) {
  size_t free_size = 0;
  size_t total_size = 0;
  C10_CUDA_CHECK(cudaMemGetInfo(&free_size, &total_size));
  *free_bytes = static_cast<int64_t>(free_size);
  *total_bytes = static_cast<int64_t>(total_size);
}
int64_t ReservedBytes() { return Statistics().reserved_bytes[0].current; }
int64_t PeakReservedBytes() { return Statistics().reserved_bytes[0].peak; }
void* HostAlloc(size_t bytes) {
  void* memory = nullptr;
  if (cudaHostAlloc(&memory, bytes, cudaHostAllocDefault) == cudaSuccess) return memory;
  cudaGetLastError();  // or the next kernel launch would report it
  return nullptr;
}
void HostFree(void* memory) { cudaFreeHost(memory); }

int ComputeCapability() {
  const cudaDeviceProp properties = Properties();
  return 10 * properties.major + properties.minor;
}

// A pool of libtorch's allocators on both sides. Graphs hold it too, but only for as long as they
// live.
class GraphMemory {
 public:
  GraphMemory() {
    at::HostAllocator* host = at::getHostAllocator(at::kCUDA);
    host->begin_allocate_to_pool(id(), [](c10::Stream) { return false; });
    host->end_allocate_to_pool(id());
  }
  ~GraphMemory() { at::getHostAllocator(at::kCUDA)->release_pool(id()); }
  GraphMemory(const GraphMemory&) = delete;
  GraphMemory& operator=(const GraphMemory&) = delete;
  c10::MempoolId_t id() { return pool_.id(); }

 private:
  at::cuda::MemPool pool_;
};

void* GraphMemoryCreate() { return new GraphMemory; }
void GraphMemoryDestroy(void* memory) { delete static_cast<GraphMemory*>(memory); }
struct Graph {
  CUDAGraph graph;
  c10::MempoolId_t pool;
};

void* GraphCreate() { return new Graph; }
void GraphCaptureBegin(void* handle, void* memory) {
  auto* self = static_cast<Graph*>(handle);
  self->pool = static_cast<GraphMemory*>(memory)->id();
  self->graph.capture_begin(self->pool);
}
// Of a capture that failed libtorch forgets the graph, but its allocators go on recording to the
// pool, which no other graph could use then.
void StopRecording(Graph& self) {
  const auto quietly = [](const auto& call) {
    try {
      call();
    } catch (const c10::Error&) {  // it had stopped before it failed
    }
  };
  namespace allocator = c10::cuda::CUDACachingAllocator;
  const c10::DeviceIndex device = c10::cuda::current_device();
  at::HostAllocator* host = at::getHostAllocator(at::kCUDA);
  quietly([&] { allocator::endAllocateToPool(device, self.pool); });
  quietly([&] { host->end_allocate_to_pool(self.pool); });
  quietly([&] { allocator::releasePool(device, self.pool); });
  quietly([&] { host->release_pool(self.pool); });
}
bool HasEnded(Graph& self) {
  try {
    self.graph.pool();
    return true;
  } catch (const c10::Error&) {
    return false;
  }
}
void GraphCaptureEnd(void* handle) {
  auto& self = *static_cast<Graph*>(handle);
  try {
    self.graph.capture_end();
  } catch (...) {
    if (!HasEnded(self)) StopRecording(self);
    throw;
  }
}
void GraphReplay(void* handle) { static_cast<Graph*>(handle)->graph.replay(); }
void GraphDestroy(void* handle) { delete static_cast<Graph*>(handle); }

constexpr CudaApi kApi = {
    .version = CudaApi::kVersion,
    .fake_quantize = LaunchFakeQuantize,
    .step_rounding = LaunchStepRounding,
    .tuning_loss = LaunchTuningLoss,
    .tuning_difference = LaunchTuningDifference,
    .metric_loss = LaunchMetricLoss,
    .fake_quantize_positions = LaunchFakeQuantizePositions,
    .step_positions = LaunchStepPositions,
    .gather = LaunchGather,
    .rms_norm = LaunchRmsNorm,
    .rms_norm_backward = LaunchRmsNormBackward,
    .rotary = LaunchRotary,
    .gated = LaunchGated,
    .gated_backward = LaunchGatedBackward,
    .row_errors = LaunchRowErrors,
    .column_squares = LaunchColumnSquares,
    .sampled_gradient = LaunchSampledGradient,
    .search_scales = LaunchSearchScales,
    .solve_gptq_tile = LaunchSolveGptqTile,
    .fp8_tiles = LaunchFp8Tiles,
    .attention_workspace = AttentionWorkspace,
    .run_attention = RunAttention,
    .error_string = ErrorString,
    .current_stream = CurrentStream,
    .synchronize = Synchronize,
    .peak_allocated_bytes = PeakAllocatedBytes,
    .reset_peak_allocated_bytes = ResetPeakAllocatedBytes,
    .release_cached_memory = ReleaseCachedMemory,
    .use_expandable_segments = UseExpandableSegments,
    .device_name = DeviceName,
    .device_memory_bytes = DeviceMemoryBytes,
    .compute_capability = ComputeCapability,
    .memory_info = MemoryInfo,
    .reserved_bytes = ReservedBytes,
    .peak_reserved_bytes = PeakReservedBytes,
    .host_alloc = HostAlloc,
    .host_free = HostFree,
    .graph_memory_create = GraphMemoryCreate,
    .graph_memory_destroy = GraphMemoryDestroy,
    .graph_create = GraphCreate,
    .graph_capture_begin = GraphCaptureBegin,
    .graph_capture_end = GraphCaptureEnd,
    .graph_replay = GraphReplay,
    .graph_destroy = GraphDestroy,
};

}  // namespace
}  // namespace ptq

extern "C" __attribute__((visibility("default"))) const ptq::CudaApi* ptq_cuda_api() {
  return &ptq::kApi;
}
