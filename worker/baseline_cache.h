// The original model's final hidden states, kept between jobs: half of every evaluation is the same
// for all jobs on one model and text.
#ifndef PTQ_WORKER_BASELINE_CACHE_H_
#define PTQ_WORKER_BASELINE_CACHE_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"

namespace ptq {

// Files named by key in one folder, the least recently used removed beyond a limit. Several
// processes may share it: files appear whole, and one that is damaged or gone is a miss.
// Thread-compatible.
class BaselineCache {
 public:
  static constexpr int64_t kMaxEntryBytes = int64_t{2} << 30;
  static constexpr int64_t kMaxTotalBytes = int64_t{8} << 30;

  // `folder` is created when needed; "" keeps nothing.
  explicit BaselineCache(std::string folder) : folder_(std::move(folder)) {}

  // Whether an entry of so many bytes would be kept.
  bool Accepts(int64_t bytes) const { return !folder_.empty() && bytes <= kMaxEntryBytes; }
  // `key`: hexadecimal digits. The tensor that was stored, verified by its digest.
  std::optional<at::Tensor> Find(const std::string& key) const;
  absl::Status Store(const std::string& key, const at::Tensor& hidden) const;

 private:
  std::string PathOf(const std::string& key) const;
  void RemoveOldest() const;

  std::string folder_;
};

}  // namespace ptq

#endif  // PTQ_WORKER_BASELINE_CACHE_H_
