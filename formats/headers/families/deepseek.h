// What DeepSeek V2 and V3 share: latent attention, and routed beside shared experts.
#ifndef PTQ_FORMATS_HEADERS_FAMILIES_DEEPSEEK_H_
#define PTQ_FORMATS_HEADERS_FAMILIES_DEEPSEEK_H_

#include <vector>

#include "absl/status/status.h"
#include "common/json.h"
#include "formats/headers/family.h"

namespace ptq::families {

// self_attn of latent attention.
std::vector<Row> LatentAttentionRows();
// mlp with the router, routed and shared experts; in the first blocks a dense one.
std::vector<Row> DeepseekMlpRows();
// Sizes of attention and experts, of which `dense_blocks` and `scaling` have other defaults. Leaves
// the choice of experts to the caller.
absl::Status ReadDeepseekSizes(const Json& json, int64_t dense_blocks, double scaling,
                               ModelConfig* config);

}  // namespace ptq::families

#endif  // PTQ_FORMATS_HEADERS_FAMILIES_DEEPSEEK_H_
