// The digest of a blob's content, as messages carry it.
#ifndef PTQ_TESTS_SERVER_DIGEST_OF_H_
#define PTQ_TESTS_SERVER_DIGEST_OF_H_

#include <cstdint>
#include <string>

#include "common/sha256.h"
#include "ptq/v1/blob_store.pb.h"

namespace ptq::testing {

inline v1::Digest DigestOf(const std::string& content) {
  v1::Digest digest;
  digest.set_hash(Sha256Hex(content));
  digest.set_size_bytes(static_cast<int64_t>(content.size()));
  return digest;
}

}  // namespace ptq::testing

#endif  // PTQ_TESTS_SERVER_DIGEST_OF_H_
