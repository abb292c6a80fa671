#include "common/sha256.h"

#include <openssl/evp.h>

#include <vector>

#include "common/file.h"
#include "common/status_macros.h"

namespace ptq {

struct Sha256::State {
  State() : context(EVP_MD_CTX_new()) { Reset(); }
  ~State() { EVP_MD_CTX_free(context); }
  void Reset() { EVP_DigestInit_ex(context, EVP_sha256(), nullptr); }
  EVP_MD_CTX* context;
};

Sha256::Sha256() : state_(std::make_unique<State>()) {}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::Update(const void* data, size_t size) {
  EVP_DigestUpdate(state_->context, data, size);
}

std::string Sha256::FinishHex() {
  unsigned char bytes[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_DigestFinal_ex(state_->context, bytes, &size);
  state_->Reset();
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(2 * size);
  for (unsigned int i = 0; i < size; ++i) {
    hex.push_back(kDigits[bytes[i] >> 4]);
    hex.push_back(kDigits[bytes[i] & 15]);
  }
  return hex;
}

std::string Sha256Hex(std::string_view data) {
  Sha256 digest;
  digest.Update(data);
  return digest.FinishHex();
}

absl::StatusOr<std::string> Sha256File(const std::string& path) {
  PTQ_ASSIGN_OR_RETURN(auto file, ReadableFile::Open(path));
  Sha256 digest;
  std::vector<char> buffer(1 << 20);
  for (int64_t offset = 0; offset < file.size();) {
    const size_t count =
        static_cast<size_t>(std::min<int64_t>(buffer.size(), file.size() - offset));
    PTQ_RETURN_IF_ERROR(file.ReadAt(offset, buffer.data(), count));
    digest.Update(buffer.data(), count);
    offset += static_cast<int64_t>(count);
  }
  return digest.FinishHex();
}

bool IsSha256Hex(std::string_view text) {
  if (text.size() != 64) return false;
  for (char c : text) {
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return false;
  }
  return true;
}

}  // namespace ptq
