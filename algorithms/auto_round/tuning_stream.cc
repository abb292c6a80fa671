#include "algorithms/auto_round/tuning_stream.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include "algorithms/cuda/device_kernels.h"

namespace ptq {

TuningStream::TuningStream(at::Device device)
    : stream_(c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device)),
      graph_memory_(CudaKernels().graph_memory_create()) {}

TuningStream::~TuningStream() {
  try {
    stream_.synchronize();
    CudaKernels().graph_memory_destroy(graph_memory_);
    CudaKernels().release_cached_memory();
  } catch (const c10::Error&) {  // of a device that failed: whoever uses it next will see it
  }
}

void TuningStream::ReleaseMemory() {
  stream_.synchronize();
  CudaKernels().graph_memory_destroy(graph_memory_);
  graph_memory_ = CudaKernels().graph_memory_create();
  CudaKernels().release_cached_memory();
}

}  // namespace ptq
