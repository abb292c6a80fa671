// A folder that lives as long as a test.
#ifndef PTQ_TESTS_CLIENT_SCRATCH_FOLDER_H_
#define PTQ_TESTS_CLIENT_SCRATCH_FOLDER_H_

#include <stdlib.h>

#include <string>

#include "common/file.h"

namespace ptq::testing {

class ScratchFolder {
 public:
  ScratchFolder() {
    std::string pattern = "/tmp/ptq_client_test.XXXXXX";
    path_ = ::mkdtemp(pattern.data());
  }
  ~ScratchFolder() { RemoveTree(path_).IgnoreError(); }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string Path(const std::string& name) const { return JoinPath(path_, name); }
  // Writes a file and returns its path.
  std::string Write(const std::string& name, const std::string& bytes) const {
    const std::string path = Path(name);
    MakeDirectories(DirName(path)).IgnoreError();
    WriteFileAtomically(path, bytes).IgnoreError();
    return path;
  }

 private:
  std::string path_;
};

}  // namespace ptq::testing

#endif  // PTQ_TESTS_CLIENT_SCRATCH_FOLDER_H_
