// SHA-256 by OpenSSL: the digest of blobs, records and results.
#ifndef PTQ_COMMON_SHA256_H_
#define PTQ_COMMON_SHA256_H_

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace ptq {

// A running digest. Thread-compatible; movable.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void Update(const void* data, size_t size);
  void Update(std::string_view data) { Update(data.data(), data.size()); }
  // 64 lowercase hexadecimal digits. The object is back in its initial state afterwards.
  std::string FinishHex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string Sha256Hex(std::string_view data);

// The digest of a whole file, read in pieces of 1 MiB. kNotFound, or what read() reports.
absl::StatusOr<std::string> Sha256File(const std::string& path);

// True for 64 lowercase hexadecimal digits.
bool IsSha256Hex(std::string_view text);

}  // namespace ptq

#endif  // PTQ_COMMON_SHA256_H_
