#include "algorithms/auto_round/tuning_stream.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include "algorithms/cuda/device_kernels.h"

namespace ptq {

TuningStream::TuningStream(at::Device device)
    : stream_(c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device)),
      graph_memory_(CudaKernels().graph_memory_create()) {}

TuningStream::~TuningStream() {
  CudaKernels().graph_memory_destroy(graph_memory_);
  CudaKernels().release_cached_memory();
}

}  // namespace ptq
