// A model's blocks one after the other, the next one read while the caller works on the one in
// hand.
#ifndef PTQ_MODELS_BLOCK_LOADER_H_
#define PTQ_MODELS_BLOCK_LOADER_H_

#include <ATen/core/Tensor.h>

#include <atomic>
#include <cstdint>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "models/decoder_model.h"

namespace ptq {

struct BlockLoaderOptions {
  // Where the next block goes meanwhile. False: into the system's page cache alone, so that it
  // takes no memory of this process. True: into memory of the loader, as large as one block and
  // page-locked where the model computes on a GPU, from which Load copies it to the device.
  bool stage = false;
  // Blocks stay loaded, the first ones that were asked for, up to so many bytes on the device.
  int64_t kept_bytes = 0;
};

// Threads only read files. They make no CUDA call, which would break a graph that the caller
// happens to be capturing; what is copied to a device is copied by Load, on the caller's stream.
//
// Not thread-safe. Borrows the model, whose reader is read by several threads at once.
class BlockLoader {
 public:
  static constexpr int64_t kNone = -1;

  BlockLoader(const DecoderModel& model, const BlockLoaderOptions& options)
      : model_(model), options_(options) {}
  ~BlockLoader();  // waits until the tensors that are being read are read
  BlockLoader(const BlockLoader&) = delete;
  BlockLoader& operator=(const BlockLoader&) = delete;

  const DecoderModel& model() const { return model_; }

  // Block `index`, and begins to read `next`, the block that will be asked for after it (kNone: no
  // other). Asking for another one than that is correct, and slower. Errors are LoadBlock's, and
  // are those of `index`: what goes wrong with `next` is said when it is asked for.
  absl::StatusOr<std::shared_ptr<const DecoderBlock>> Load(int64_t index, int64_t next);

 private:
  absl::StatusOr<std::shared_ptr<const DecoderBlock>> LoadNow(int64_t index);
  absl::StatusOr<std::shared_ptr<const DecoderBlock>> LoadStaged(int64_t index);
  // Begins to read block `index`, and lets go of any other that was read ahead.
  void Begin(int64_t index);
  // Fills staged_ with the block's tensors.
  absl::Status Stage(int64_t index);
  void Prefetch(int64_t index) const;
  // On the device, each tensor padded to kAlignment.
  int64_t BytesOf(int64_t index) const;

  const DecoderModel& model_;
  const BlockLoaderOptions options_;
  std::map<int64_t, std::shared_ptr<const DecoderBlock>> kept_;
  int64_t kept_bytes_ = 0;
  at::Tensor staging_;                        // uint8, CPU
  std::map<std::string, at::Tensor> staged_;  // by name, in staging_ where they fit
  int64_t ahead_index_ = kNone;               // the block that ahead_ reads or has read
  std::atomic<bool> stop_{false};
  std::future<absl::Status> ahead_;
};

}  // namespace ptq

#endif  // PTQ_MODELS_BLOCK_LOADER_H_
