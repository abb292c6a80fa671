// What the tables of families are made of.
#ifndef PTQ_FORMATS_HEADERS_FAMILIES_ROWS_H_
#define PTQ_FORMATS_HEADERS_FAMILIES_ROWS_H_

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "formats/headers/family.h"

namespace ptq::families {

inline int64_t Vocabulary(const ModelConfig& config) { return config.vocab_size; }
inline int64_t Hidden(const ModelConfig& config) { return config.hidden_size; }
inline int64_t Intermediate(const ModelConfig& config) { return config.intermediate_size; }
inline int64_t TwoIntermediates(const ModelConfig& config) { return 2 * config.intermediate_size; }
inline int64_t HeadDim(const ModelConfig& config) { return config.head_dim; }
inline int64_t Queries(const ModelConfig& config) {
  return config.num_attention_heads * config.head_dim;
}
inline int64_t Keys(const ModelConfig& config) {
  return config.num_key_value_heads * config.head_dim;
}
inline int64_t QueriesKeysValues(const ModelConfig& config) {
  return Queries(config) + 2 * Keys(config);
}
inline int64_t Positions(const ModelConfig& config) {
  return config.max_position_embeddings + config.position_offset.value_or(0);
}

inline constexpr Condition kAlways = {[](const ModelConfig&, int64_t) { return true; }, ""};
inline constexpr Condition kNever = {[](const ModelConfig&, int64_t) { return false; }, ""};
inline constexpr Condition kIfAttentionBias = {
    [](const ModelConfig& config, int64_t) { return config.attention_bias; },
    "attention_bias is true"};
inline constexpr Condition kIfMlpBias = {
    [](const ModelConfig& config, int64_t) { return config.mlp_bias; }, "mlp_bias is true"};
inline constexpr Condition kUnlessTied = {
    [](const ModelConfig& config, int64_t) { return !config.tie_word_embeddings; },
    "tie_word_embeddings is false"};

std::vector<Row> Join(std::initializer_list<std::vector<Row>> parts);

// A weight [out, in], and a bias if `bias` holds.
std::vector<Row> LinearRows(const std::string& module, TensorPart part, Extent out, Extent in,
                            const Condition& bias = kNever);
// One weight of `extent`, and for LayerNorm a bias.
std::vector<Row> NormRows(const std::string& module, TensorPart part, Extent extent,
                          const Condition& bias = kNever);
std::vector<Row> EmbeddingRows(const std::string& module);
// Learned positions.
std::vector<Row> PositionRows(const std::string& module);
// Final norm, and the head unless it is tied.
std::vector<Row> FinalRows(const std::string& norm, const Condition& norm_bias = kNever,
                           const std::string& head = "lm_head");

// self_attn.{q,k,v}_proj and o_proj.
std::vector<Row> AttentionRows(const Condition& bias, const Condition& output_bias);
// self_attn.q_norm and k_norm, of each head.
std::vector<Row> HeadNormRows();
// mlp.{gate,up,down}_proj.
std::vector<Row> GatedMlpRows(const Condition& bias = kNever);
// Llama's block: a norm before attention and one before the MLP.
std::vector<Row> LlamaBlockRows(const std::vector<Row>& attention, const std::vector<Row>& mlp);

// layer_types, or where it is absent `otherwise(block)`: which blocks have the sliding window.
absl::Status ReadLayerTypes(const Json& json, ModelConfig* config,
                            bool (*otherwise)(int64_t block, int64_t argument), int64_t argument);
// All blocks have the window of `sliding_window`, if there is one; an absent key is `otherwise`, 0
// for none.
absl::Status ReadWindowOfAllBlocks(const Json& json, int64_t otherwise, ModelConfig* config);
// The window's size: absent is `otherwise`, null none.
absl::StatusOr<int64_t> ReadWindow(const Json& json, int64_t otherwise);

}  // namespace ptq::families

#endif  // PTQ_FORMATS_HEADERS_FAMILIES_ROWS_H_
