#include "formats/headers/families/rows.h"

#include "absl/strings/str_format.h"
#include "common/json.h"
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/quote.h"

namespace ptq::families {

std::vector<Row> Join(std::initializer_list<std::vector<Row>> parts) {
  std::vector<Row> rows;
  for (const std::vector<Row>& part : parts) rows.insert(rows.end(), part.begin(), part.end());
  return rows;
}

std::vector<Row> LinearRows(const std::string& module, TensorPart part, Extent out, Extent in,
                            const Condition& bias) {
  return {{module, "weight", TensorRole::kLinearWeight, part, {out, in}, kAlways},
          {module, "bias", TensorRole::kLinearBias, part, {out}, bias}};
}

std::vector<Row> NormRows(const std::string& module, TensorPart part, Extent extent,
                          const Condition& bias) {
  return {{module, "weight", TensorRole::kNorm, part, {extent}, kAlways},
          {module, "bias", TensorRole::kNormBias, part, {extent}, bias}};
}

std::vector<Row> EmbeddingRows(const std::string& module) {
  return {{module,
           "weight",
           TensorRole::kEmbedding,
           TensorPart::kTokenEmbedding,
           {Vocabulary, Hidden},
           kAlways}};
}

std::vector<Row> PositionRows(const std::string& module) {
  return {{module,
           "weight",
           TensorRole::kEmbedding,
           TensorPart::kPositionEmbedding,
           {Positions, Hidden},
           kAlways}};
}

std::vector<Row> FinalRows(const std::string& norm, const Condition& norm_bias,
                           const std::string& head) {
  return Join({NormRows(norm, TensorPart::kFinalNorm, Hidden, norm_bias),
               {{head,
                 "weight",
                 TensorRole::kHead,
                 TensorPart::kHead,
                 {Vocabulary, Hidden},
                 kUnlessTied}}});
}

std::vector<Row> AttentionRows(const Condition& bias, const Condition& output_bias) {
  return Join(
      {LinearRows("self_attn.q_proj", TensorPart::kQuery, Queries, Hidden, bias),
       LinearRows("self_attn.k_proj", TensorPart::kKey, Keys, Hidden, bias),
       LinearRows("self_attn.v_proj", TensorPart::kValue, Keys, Hidden, bias),
       LinearRows("self_attn.o_proj", TensorPart::kAttentionOutput, Hidden, Queries, output_bias)});
}

std::vector<Row> HeadNormRows() {
  return Join({NormRows("self_attn.q_norm", TensorPart::kQueryNorm, HeadDim),
               NormRows("self_attn.k_norm", TensorPart::kKeyNorm, HeadDim)});
}

std::vector<Row> GatedMlpRows(const Condition& bias) {
  return Join({LinearRows("mlp.gate_proj", TensorPart::kGate, Intermediate, Hidden, bias),
               LinearRows("mlp.up_proj", TensorPart::kUp, Intermediate, Hidden, bias),
               LinearRows("mlp.down_proj", TensorPart::kDown, Hidden, Intermediate, bias)});
}

std::vector<Row> LlamaBlockRows(const std::vector<Row>& attention, const std::vector<Row>& mlp) {
  return Join({NormRows("input_layernorm", TensorPart::kAttentionInputNorm, Hidden), attention,
               NormRows("post_attention_layernorm", TensorPart::kMlpInputNorm, Hidden), mlp});
}

absl::StatusOr<int64_t> ReadWindow(const Json& json, int64_t otherwise) {
  return ReadSize(json, "sliding_window", json.contains("sliding_window") ? 0 : otherwise);
}

absl::Status ReadWindowOfAllBlocks(const Json& json, int64_t otherwise, ModelConfig* config) {
  AttentionOptions& attention = config->attention;
  PTQ_ASSIGN_OR_RETURN(attention.sliding_window, ReadWindow(json, otherwise));
  attention.sliding.assign(static_cast<size_t>(config->num_hidden_layers), true);
  return absl::OkStatus();
}

absl::Status ReadLayerTypes(const Json& json, ModelConfig* config,
                            bool (*otherwise)(int64_t block, int64_t argument), int64_t argument) {
  std::vector<bool>& sliding = config->attention.sliding;
  const Json* types = FindKey(json, "layer_types");
  if (types == nullptr) {
    for (int64_t block = 0; block < config->num_hidden_layers; ++block) {
      sliding.push_back(otherwise(block, argument));
    }
    return absl::OkStatus();
  }
  if (!types->is_array() || static_cast<int64_t>(types->size()) != config->num_hidden_layers) {
    return absl::InvalidArgumentError(
        absl::StrFormat("layer_types must be an array of num_hidden_layers (%d) strings",
                        config->num_hidden_layers));
  }
  for (const Json& type : *types) {
    if (type != "full_attention" && type != "sliding_attention") {
      return absl::UnimplementedError(
          absl::StrFormat("layer_types has %s (supported: full_attention, sliding_attention)",
                          type.is_string() ? Quote(type.get<std::string>()) : DumpJson(type)));
    }
    sliding.push_back(type == "sliding_attention");
  }
  return absl::OkStatus();
}

}  // namespace ptq::families
