#include "server/jobs/model_roots.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/str_join.h"
#include "server/errors/status_details.h"

namespace ptq {
namespace {

bool IsBelow(const std::string& path, const std::string& root) {
  if (root == "/") return true;
  return path == root || (path.size() > root.size() && path.compare(0, root.size(), root) == 0 &&
                          path[root.size()] == '/');
}

bool IsBelowAny(const std::string& path, const std::vector<std::string>& roots) {
  for (const std::string& root : roots) {
    if (IsBelow(path, root)) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<ModelRoots> ModelRoots::Create(const std::vector<std::string>& roots) {
  ModelRoots result;
  for (const std::string& root : roots) {
    std::error_code error;
    const std::filesystem::path absolute = std::filesystem::absolute(root, error);
    const std::filesystem::path canonical = std::filesystem::canonical(absolute, error);
    if (error || !std::filesystem::is_directory(canonical, error)) {
      return absl::InvalidArgumentError("--model-root " + root + " is not a folder");
    }
    std::string given = absolute.lexically_normal().string();
    if (given.size() > 1 && given.back() == '/') given.pop_back();
    result.given_.push_back(given);
    result.canonical_.push_back(canonical.string());
  }
  return result;
}

absl::StatusOr<std::string> ModelRoots::Resolve(const std::string& path) const {
  if (path.empty() || path[0] != '/' || path.find('\0') != std::string::npos ||
      path.size() > 4096) {
    return absl::InvalidArgumentError("a server path must be absolute");
  }
  if (given_.empty()) {
    return WithReason(absl::PermissionDeniedError("this server accepts no paths of its own disks; "
                                                  "upload the files, or start ptqd with "
                                                  "--model-root"),
                      "NO_MODEL_ROOTS");
  }
  const absl::Status denied =
      WithReason(absl::PermissionDeniedError("the path must lie, links followed, below one of " +
                                             absl::StrJoin(given_, ", ")),
                 "OUTSIDE_MODEL_ROOTS");
  // What lies outside of the roots is nobody's business, not even whether it exists.
  const std::string normal = std::filesystem::path(path).lexically_normal().string();
  if (!IsBelowAny(normal, given_) && !IsBelowAny(normal, canonical_)) return denied;
  std::error_code error;
  const std::filesystem::path canonical = std::filesystem::canonical(path, error);
  if (error) return absl::InvalidArgumentError("there is nothing at " + path + " on the server");
  if (!IsBelowAny(canonical.string(), canonical_)) return denied;
  return canonical.string();
}

}  // namespace ptq
