// The one bridge between libtorch's exceptions and absl::Status.
#ifndef PTQ_COMMON_TORCH_STATUS_H_
#define PTQ_COMMON_TORCH_STATUS_H_

#include <functional>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ptq {

// The status for the exception being handled; call it inside a catch block only. Out of memory
// (host or device) is kResourceExhausted, what torch does not implement kUnimplemented, all else
// kInternal, errors of CUDA included.
absl::Status StatusFromCurrentException(const std::string& context);

// Whether a GPU's memory ran out, as opposed to the host's or a disk.
bool IsDeviceMemoryExhausted(const absl::Status& status);

// Runs `body` and turns what it throws into a status whose message begins with `context`. `body`
// returns absl::Status or absl::StatusOr<T>, and so does this.
template <typename Body>
std::invoke_result_t<Body> CatchTorchErrors(const std::string& context, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (...) {
    return StatusFromCurrentException(context);
  }
}

}  // namespace ptq

#endif  // PTQ_COMMON_TORCH_STATUS_H_
