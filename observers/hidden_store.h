// Hidden states of several places in a model, kept while a pass over it needs them.
#ifndef PTQ_OBSERVERS_HIDDEN_STORE_H_
#define PTQ_OBSERVERS_HIDDEN_STORE_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file.h"

namespace ptq {

// A number of slots, each a tensor [S, T, D] that is written and read in pieces of samples. The
// first slots lie on the device up to a limit, the others in a file, where the host's page cache
// keeps what fits: on a small machine the data goes to the disk instead of ending the process.
// Values come back as they were. Not thread-safe.
class HiddenStore {
 public:
  struct Options {
    int64_t device_bytes = int64_t{1} << 30;  // at most this many on the device
    std::string folder;                       // for the file, which has no name and dies with it
  };
  // `like` gives dtype and device.
  static absl::StatusOr<HiddenStore> Create(int64_t slots, at::IntArrayRef shape,
                                            const at::TensorOptions& like, const Options& options);

  // Samples [begin, begin + piece.size(0)) of a slot. kResourceExhausted on a full disk.
  absl::Status Write(int64_t slot, int64_t begin, const at::Tensor& piece);
  absl::StatusOr<at::Tensor> Read(int64_t slot, int64_t begin, int64_t count) const;

 private:
  HiddenStore() = default;
  int64_t BytesOf(int64_t samples) const;

  std::vector<int64_t> shape_;
  at::TensorOptions options_;
  std::vector<at::Tensor> device_;   // of the first slots
  std::optional<ScratchFile> file_;  // of the others
};

}  // namespace ptq

#endif  // PTQ_OBSERVERS_HIDDEN_STORE_H_
