#include "formats/hashing_writer.h"

#include <future>

namespace ptq {

absl::Status HashingWriter::Append(const void* data, size_t size) {
  // A thread costs as much as hashing some tens of kilobytes.
  if (size < (1 << 18)) {
    sha256_.Update(data, size);
    return file_.Append(data, size);
  }
  const auto hashing =
      std::async(std::launch::async, [this, data, size] { sha256_.Update(data, size); });
  const absl::Status status = file_.Append(data, size);
  hashing.wait();
  return status;
}

}  // namespace ptq
