#include "formats/headers/families/experts.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {

std::vector<Row> RouterRows(const std::string& module) {
  return {
      {module, "weight", TensorRole::kRouter, TensorPart::kRouter, {Experts, Hidden}, kIfRouted}};
}

std::vector<Row> RoutedRows(const std::string& gate, const std::string& up,
                            const std::string& down) {
  const auto row = [](const std::string& module, TensorPart part, Extent out, Extent in) {
    Row made = {module, "weight", TensorRole::kLinearWeight, part, {out, in}, kIfRouted};
    made.experts = Experts;
    return made;
  };
  return {row(gate, TensorPart::kGate, ExpertWidth, Hidden),
          row(up, TensorPart::kUp, ExpertWidth, Hidden),
          row(down, TensorPart::kDown, Hidden, ExpertWidth)};
}

std::vector<Row> GatedRows(const std::string& module, Extent width, const Condition& present,
                           const Condition& bias) {
  std::vector<Row> rows;
  const auto add = [&](const char* name, TensorPart part, Extent out, Extent in) {
    rows.push_back({module + name, "weight", TensorRole::kLinearWeight, part, {out, in}, present});
    rows.push_back({module + name, "bias", TensorRole::kLinearBias, part, {out}, bias});
  };
  add(".gate_proj", TensorPart::kGate, width, Hidden);
  add(".up_proj", TensorPart::kUp, width, Hidden);
  add(".down_proj", TensorPart::kDown, Hidden, width);
  return rows;
}

std::vector<Row> QwenExpertRows() {
  return Join({RouterRows("mlp.gate"),
               RoutedRows("mlp.experts.{i}.gate_proj", "mlp.experts.{i}.up_proj",
                          "mlp.experts.{i}.down_proj"),
               GatedRows("mlp", Intermediate, kIfDense, kNever)});
}

namespace {

absl::Status ReadSparseBlocks(const Json& json, ModelConfig* config) {
  PTQ_ASSIGN_OR_RETURN(const int64_t step, ReadSize(json, "decoder_sparse_step", 1));
  std::vector<bool>& routed = config->experts.routed;
  for (int64_t block = 0; block < config->num_hidden_layers; ++block) {
    routed.push_back((block + 1) % step == 0);
  }
  const Json* dense = FindKey(json, "mlp_only_layers");
  if (dense == nullptr) return absl::OkStatus();
  if (!dense->is_array()) return WrongType("mlp_only_layers", "an array of integers");
  for (const Json& block : *dense) {
    if (!block.is_number_integer()) return WrongType("mlp_only_layers", "an array of integers");
    if (block.is_number_unsigned() && block.get<uint64_t>() < routed.size()) {
      routed[block.get<size_t>()] = false;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadQwenExperts(const Json& json, const QwenExpertDefaults& defaults,
                             ModelConfig* config) {
  PTQ_RETURN_IF_ERROR(ReadSparseBlocks(json, config));
  PTQ_ASSIGN_OR_RETURN(config->experts.intermediate_size,
                       ReadSize(json, "moe_intermediate_size", defaults.width));
  RouterConfig& router = config->experts.router;
  // transformers 5 writes another key than published files have.
  PTQ_ASSIGN_OR_RETURN(const int64_t local, ReadSize(json, "num_local_experts", defaults.experts));
  PTQ_ASSIGN_OR_RETURN(router.experts, ReadSize(json, "num_experts", local));
  PTQ_ASSIGN_OR_RETURN(router.experts_per_token,
                       ReadSize(json, "num_experts_per_tok", defaults.per_token));
  PTQ_ASSIGN_OR_RETURN(router.normalize, ReadFlag(json, "norm_topk_prob", false));
  router.weights_like_hidden = true;
  return CheckRouter(router);
}

absl::Status CheckRouter(const RouterConfig& router) {
  if (router.experts % router.groups != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("n_group (%d) does not divide %d experts", router.groups, router.experts));
  }
  const int64_t group = router.experts / router.groups;
  if (router.groups_per_token > router.groups || router.scores_per_group > group) {
    return absl::InvalidArgumentError(
        absl::StrFormat("topk_group (%d) of n_group (%d) groups of %d experts cannot be chosen",
                        router.groups_per_token, router.groups, group));
  }
  if (router.experts_per_token > router.groups_per_token * group) {
    return absl::InvalidArgumentError(
        absl::StrFormat("num_experts_per_tok is %d, but a token can go to %d experts only",
                        router.experts_per_token, router.groups_per_token * group));
  }
  return absl::OkStatus();
}

absl::Status RefuseOther(const Json& json, const char* key, const Json& value) {
  const Json* found = FindKey(json, key);
  if (found == nullptr || *found == value) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrFormat("%s %s is not supported (supported: %s)", key,
                                                  DumpJson(*found), DumpJson(value)));
}

}  // namespace ptq::families
