// What the Gemma families share.
#ifndef PTQ_FORMATS_HEADERS_FAMILIES_GEMMA_H_
#define PTQ_FORMATS_HEADERS_FAMILIES_GEMMA_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "formats/headers/family.h"

namespace ptq::families {

ConfigKeys GemmaKeys(int64_t max_position_embeddings);

// A norm before and after attention, and before and after the MLP.
std::vector<Row> GemmaBlockRows(const std::vector<Row>& attention);

// A cap of logits; 0 for a null, which is none.
absl::StatusOr<double> ReadSoftCap(const Json& json, const char* key, double otherwise);
// All but the cap of attention.
absl::Status ReadGemmaOptions(const Json& json, double default_logits_soft_cap,
                              ModelConfig* config);

}  // namespace ptq::families

#endif  // PTQ_FORMATS_HEADERS_FAMILIES_GEMMA_H_
