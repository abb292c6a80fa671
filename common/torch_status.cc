#include "common/torch_status.h"

#include <c10/util/Exception.h>

#include <exception>
#include <new>

#include "absl/strings/cord.h"

namespace ptq {
namespace {

constexpr int32_t kCudaErrorMemoryAllocation = 2;  // driver_types.h, which this folder does without
constexpr char kDeviceMemory[] = "ptq.dev/device-memory";

absl::Status DeviceMemoryExhausted(const std::string& message) {
  absl::Status status = absl::ResourceExhaustedError(message);
  status.SetPayload(kDeviceMemory, absl::Cord());
  return status;
}

// What libraries beside the allocator say when the device's memory is full.
bool SaysOutOfDeviceMemory(const std::string& what) {
  return what.find("CUBLAS_STATUS_ALLOC_FAILED") != std::string::npos ||
         what.find("CUDNN_STATUS_ALLOC_FAILED") != std::string::npos ||
         what.find("CUSOLVER_STATUS_ALLOC_FAILED") != std::string::npos;
}

}  // namespace

bool IsDeviceMemoryExhausted(const absl::Status& status) {
  return status.GetPayload(kDeviceMemory).has_value();
}

absl::Status StatusFromCurrentException(const std::string& context) {
  const auto message = [&context](const char* what) { return context + ": " + what; };
  try {
    throw;
  } catch (const c10::OutOfMemoryError& error) {
    return DeviceMemoryExhausted(message(error.what_without_backtrace()));
  } catch (const c10::NotImplementedError& error) {
    return absl::UnimplementedError(message(error.what_without_backtrace()));
  } catch (const c10::AcceleratorError& error) {
    // The lines after the first are advice for those who compile libtorch.
    const std::string what = error.what_without_backtrace();
    const std::string line = message(what.substr(0, what.find('\n')).c_str());
    return error.get_error_code() == kCudaErrorMemoryAllocation ? DeviceMemoryExhausted(line)
                                                                : absl::InternalError(line);
  } catch (const c10::Error& error) {
    // libtorch's CPU allocator throws a plain c10::Error that names itself.
    const std::string what = error.what_without_backtrace();
    if (what.find("DefaultCPUAllocator") != std::string::npos) {
      return absl::ResourceExhaustedError(message(what.c_str()));
    }
    if (SaysOutOfDeviceMemory(what)) return DeviceMemoryExhausted(message(what.c_str()));
    return absl::InternalError(message(what.c_str()));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(message("out of memory"));
  } catch (const std::exception& error) {
    return absl::InternalError(message(error.what()));
  } catch (...) {
    return absl::UnknownError(message("an exception of unknown type"));
  }
}

}  // namespace ptq
