// Page-locked memory that quantized blocks go through on their way from a GPU to the disk.
#ifndef PTQ_WORKER_HOST_STAGING_H_
#define PTQ_WORKER_HOST_STAGING_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "formats/quantized_checkpoint.h"

namespace ptq {

// A number of slots, each as large as the largest block that was put into it. The memory is got and
// given back by whoever makes, fills and destroys it, so that the threads that write from it make
// no CUDA call.
class HostStaging {
 public:
  explicit HostStaging(int64_t slots) : slots_(static_cast<size_t>(slots)) {}

  // Copies the records' tensors to `slot`, which nobody reads any more. They stay valid until the
  // slot is filled again. Tensors that lie on the CPU already are left alone.
  void Fill(int64_t slot, std::vector<QuantizedModule>& modules);

 private:
  std::vector<at::Tensor> slots_;  // uint8
};

}  // namespace ptq

#endif  // PTQ_WORKER_HOST_STAGING_H_
