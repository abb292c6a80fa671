// The folders below which clients may name models and datasets by path.
#ifndef PTQ_SERVER_JOBS_MODEL_ROOTS_H_
#define PTQ_SERVER_JOBS_MODEL_ROOTS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace ptq {

// Immutable.
class ModelRoots {
 public:
  // kInvalidArgument naming a root that is not a folder.
  static absl::StatusOr<ModelRoots> Create(const std::vector<std::string>& roots);

  // The path without links, which lies below a root. kInvalidArgument: not absolute, or nothing
  // there; kPermissionDenied: outside of all roots (whether or not something is there), or links
  // lead out.
  absl::StatusOr<std::string> Resolve(const std::string& path) const;

  const std::vector<std::string>& roots() const { return given_; }

 private:
  std::vector<std::string> given_;      // absolute, as configured
  std::vector<std::string> canonical_;  // without links
};

}  // namespace ptq

#endif  // PTQ_SERVER_JOBS_MODEL_ROOTS_H_
