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
  // Reads the manifest, if an earlier run left one. `identity`: what the metrics depend on beside
  // the job; one more reason to compute them again.
  FisherFiles(std::string folder, int64_t blocks, Json identity);

  // Whether all metrics are there, of this run or an earlier one. Files are checked when they are
  // read.
  bool Complete() const { return complete_; }
  // What computing them took; 0 unless they are complete.
  double Seconds() const { return seconds_; }
  // Removes what is there and makes the folder.
  absl::Status StartOver();
  // `fisher` [D, D] symmetric; rounded to bfloat16.
  absl::Status Write(int64_t block, const at::Tensor& fisher);
  absl::Status Finish(double seconds);
  // [D, D] float32, CPU. kDataLoss naming the file if it is not what was written.
  absl::StatusOr<at::Tensor> Read(int64_t block) const;
  // Where temporary data of the pass may lie.
  const std::string& folder() const { return folder_; }

 private:
  std::string PathOf(int64_t block) const;
  std::string ManifestPath() const;
  const std::string folder_;
  const int64_t blocks_;
  const Json identity_;
  Json digests_ = Json::object();  // by block
  bool complete_ = false;
  double seconds_ = 0;
};

}  // namespace ptq

#endif  // PTQ_WORKER_FISHER_FILES_H_
