#include "algorithms/cuda/cuda_runtime.h"

#include <ATen/Context.h>
#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/torch_status.h"

namespace ptq {
namespace {

constexpr const char* kTorchCuda = "libtorch_cuda.so";
constexpr const char* kPtqCuda = "libptq_cuda.so";

std::atomic<const CudaApi*> loaded_api{nullptr};

// Where libptq_cuda.so may be: beside the program, beside it in a build tree, where the loader
// looks.
std::vector<std::string> PtqCudaCandidates() {
  std::vector<std::string> paths;
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    paths.push_back((program.parent_path() / kPtqCuda).string());
    paths.push_back((program.parent_path().parent_path() / "bin" / kPtqCuda).string());
    paths.push_back((program.parent_path().parent_path() / "lib" / kPtqCuda).string());
  }
  paths.emplace_back(kPtqCuda);
  return paths;
}

absl::StatusOr<const CudaApi*> OpenPtqCuda() {
  std::string error;
  for (const std::string& path : PtqCudaCandidates()) {
    if (path.find('/') != std::string::npos && !std::filesystem::exists(path)) {
      continue;
    }
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      // That of a file which is there says more than that of the search by name.
      const std::string reason = dlerror();
      if (error.empty()) error = reason;
      continue;
    }
    const auto get = reinterpret_cast<const CudaApi* (*)()>(dlsym(library, kCudaApiSymbol));
    if (get == nullptr || get()->version != CudaApi::kVersion) {
      return absl::UnavailableError(
          absl::StrCat(path, " does not belong to this program: install both from one build"));
    }
    return get();
  }
  return absl::UnavailableError(
      absl::StrCat(kPtqCuda, " could not be loaded (", error,
                   "): this is a CPU-only build; build with nvcc for CUDA, or use --device cpu"));
}

absl::Status Load() {
  // cuBLAS is deterministic only with a fixed workspace, which it reads when it starts.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  if (dlopen(kTorchCuda, RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    const char* error = dlerror();
    return absl::UnavailableError(
        absl::StrCat("libtorch's CUDA part could not be loaded (", error,
                     "): install the CUDA build of torch 2.11.0, or use --device cpu"));
  }
  return CatchTorchErrors("CUDA", [&]() -> absl::Status {
    if (!at::globalContext().hasCUDA()) {
      return absl::FailedPreconditionError(
          "no CUDA device was found: check the driver with nvidia-smi, or use --device cpu");
    }
    // After the device check: without a driver the kernels' library is of no use.
    absl::StatusOr<const CudaApi*> api = OpenPtqCuda();
    if (!api.ok()) {
      return api.status();
    }
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
    at::globalContext().setDeterministicFillUninitializedMemory(false);
    (*api)->synchronize();  // starts the driver: a broken one shows here
    loaded_api.store(*api, std::memory_order_release);
    return absl::OkStatus();
  });
}

template <typename Result, typename Call>
Result AskDevice(Result absent, Call&& call) {
  const CudaApi* api = LoadedCuda();
  if (api == nullptr) {
    return absent;
  }
  try {
    return call(*api);
  } catch (...) {
    return absent;
  }
}

}  // namespace

absl::Status LoadCuda() {
  static std::once_flag once;
  static auto& status = *new absl::Status;
  std::call_once(once, [] { status = Load(); });
  return status;
}

const CudaApi* LoadedCuda() { return loaded_api.load(std::memory_order_acquire); }

std::string CudaDeviceName() {
  return AskDevice(std::string(), [](const CudaApi& api) {
    char name[256] = {};
    api.device_name(name, sizeof(name));
    return std::string(name);
  });
}

int64_t CudaDeviceMemoryBytes() {
  return AskDevice(int64_t{0}, [](const CudaApi& api) { return api.device_memory_bytes(); });
}

int64_t CudaPeakMemoryBytes() {
  return AskDevice(int64_t{0}, [](const CudaApi& api) { return api.peak_allocated_bytes(); });
}

CudaMemory CudaMemoryInfo() {
  return AskDevice(CudaMemory(), [](const CudaApi& api) {
    CudaMemory memory;
    api.memory_info(&memory.free_bytes, &memory.total_bytes);
    return memory;
  });
}

int64_t CudaPeakUsedBytes() {
  return AskDevice(int64_t{0}, [](const CudaApi& api) {
    CudaMemory memory;
    api.memory_info(&memory.free_bytes, &memory.total_bytes);
    return memory.total_bytes - memory.free_bytes - api.reserved_bytes() +
           api.peak_reserved_bytes();
  });
}

absl::Status SynchronizeCuda() {
  return CatchTorchErrors("CUDA", []() -> absl::Status {
    if (const CudaApi* api = LoadedCuda(); api != nullptr) {
      api->synchronize();
    }
    return absl::OkStatus();
  });
}

}  // namespace ptq
