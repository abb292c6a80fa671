// What families with mixtures of experts share.
#ifndef PTQ_FORMATS_HEADERS_FAMILIES_EXPERTS_H_
#define PTQ_FORMATS_HEADERS_FAMILIES_EXPERTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/json.h"
#include "formats/headers/family.h"

namespace ptq::families {

inline constexpr Condition kIfRouted = {
    [](const ModelConfig& config, int64_t block) { return config.IsRouted(block); },
    "the block has experts"};
inline constexpr Condition kIfDense = {
    [](const ModelConfig& config, int64_t block) { return !config.IsRouted(block); },
    "the block has no experts"};

inline int64_t Experts(const ModelConfig& config) { return config.experts.router.experts; }
inline int64_t ExpertWidth(const ModelConfig& config) { return config.experts.intermediate_size; }
inline int64_t SharedExpertWidth(const ModelConfig& config) {
  return config.experts.shared_intermediate_size;
}

// mlp.gate, the router's weight [experts, D].
std::vector<Row> RouterRows(const std::string& module);
// Gated MLPs of routed experts; "{i}" in the names is the expert.
std::vector<Row> RoutedRows(const std::string& gate, const std::string& up,
                            const std::string& down);
// MODULE.{gate,up,down}_proj of `width` inner values, in the blocks where `present` holds.
std::vector<Row> GatedRows(const std::string& module, Extent width, const Condition& present,
                           const Condition& bias);
// mlp.gate, mlp.experts.{i}.{gate,up,down}_proj, and in the blocks without experts
// mlp.{gate,up,down}_proj.
std::vector<Row> QwenExpertRows();

// Which blocks have experts (decoder_sparse_step, mlp_only_layers), their sizes, and how Qwen's
// router works. `defaults` are of absent keys.
struct QwenExpertDefaults {
  int64_t experts = 0;
  int64_t per_token = 0;
  int64_t width = 0;
};
absl::Status ReadQwenExperts(const Json& json, const QwenExpertDefaults& defaults,
                             ModelConfig* config);
// What the router's sizes have to be to each other. kInvalidArgument.
absl::Status CheckRouter(const RouterConfig& router);
// kUnimplemented if `key` is there and is not `value`, which is what transformers computes without
// looking at the key.
absl::Status RefuseOther(const Json& json, const char* key, const Json& value);

}  // namespace ptq::families

#endif  // PTQ_FORMATS_HEADERS_FAMILIES_EXPERTS_H_
