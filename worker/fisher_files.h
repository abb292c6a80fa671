// The Fisher metrics of a job's blocks in its folder: a part of the checkpoint, so that a resumed
// job tunes by the same bits.
#ifndef PTQ_WORKER_FISHER_FILES_H_
#define PTQ_WORKER_FISHER_FILES_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/json.h"

namespace ptq {

// One safetensors file a block with the upper triangle in bfloat16, and a manifest with their
// digests, written last: a folder without one holds nothing. Not thread-safe.
class FisherFiles {
 public:
  // `identity`: what the metrics depend on beside the job; one more reason to compute them again.
  FisherFiles(std::string folder, int64_t blocks, Json identity)
      : folder_(std::move(folder)), blocks_(blocks), identity_(std::move(identity)) {}

  // Whether an earlier run finished them. Files are checked when they are read.
  bool Complete() const { return Manifest().ok(); }
  // What that run took.
  double Seconds() const;
  // Removes what is there and makes the folder.
  absl::Status StartOver();
  // `fisher` [D, D] symmetric, float32; rounded to bfloat16.
  absl::Status Write(int64_t block, const at::Tensor& fisher);
  absl::Status Finish(double seconds);
  // [D, D] float32, CPU. kDataLoss naming the file if it is not what was written.
  absl::StatusOr<at::Tensor> Read(int64_t block) const;
  // Where temporary data of the pass may lie.
  const std::string& folder() const { return folder_; }

 private:
  std::string PathOf(int64_t block) const;
  std::string ManifestPath() const;
  // kNotFound or kDataLoss unless it is complete and of this identity.
  absl::StatusOr<Json> Manifest() const;

  const std::string folder_;
  const int64_t blocks_;
  const Json identity_;
  Json digests_ = Json::object();
};

}  // namespace ptq

#endif  // PTQ_WORKER_FISHER_FILES_H_
