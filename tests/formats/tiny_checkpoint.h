// A random Llama checkpoint on disk and records for it, for the tests of readers and writers.
#ifndef PTQ_TESTS_FORMATS_TINY_CHECKPOINT_H_
#define PTQ_TESTS_FORMATS_TINY_CHECKPOINT_H_

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "algorithms/affine/affine_primitives.h"
#include "common/file.h"
#include "common/json.h"
#include "common/status_macros.h"
#include "formats/headers/inspect.h"
#include "formats/headers/tensor_table.h"
#include "formats/quantized_checkpoint.h"
#include "formats/safetensors_writer.h"

namespace ptq::testing {

// Two blocks; q_proj is [32, 64], as the golden data need it.
inline Json TinyConfig(bool tied, int64_t key_value_heads = 2) {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"dtype", "bfloat16"},
          {"eos_token_id", 2},
          {"hidden_act", "silu"},
          {"hidden_size", 64},
          {"intermediate_size", 96},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", key_value_heads},
          {"head_dim", 8},
          {"max_position_embeddings", 64},
          {"rms_norm_eps", 1e-05},
          {"rope_theta", 10000.0},
          {"tie_word_embeddings", tied},
          {"vocab_size", 50}};
}

// Writes config.json, generation_config.json and model.safetensors into `folder`, which is emptied.
inline absl::Status WriteTinyCheckpoint(const std::string& folder, bool tied,
                                        at::ScalarType dtype = at::kBFloat16,
                                        int64_t key_value_heads = 2) {
  PTQ_RETURN_IF_ERROR(RemoveTree(folder));
  PTQ_RETURN_IF_ERROR(MakeDirectories(folder));
  const std::string text = DumpJsonPretty(TinyConfig(tied, key_value_heads));
  PTQ_RETURN_IF_ERROR(WriteFileAtomically(folder + "/config.json", text));
  PTQ_RETURN_IF_ERROR(WriteFileAtomically(folder + "/generation_config.json", "{\"x\":  1}"));
  std::vector<std::string> warnings;
  PTQ_ASSIGN_OR_RETURN(const ModelConfig config, ParseModelConfig(text, &warnings));
  at::manual_seed(7);
  std::vector<NamedTensor> tensors;
  for (const TableTensor& tensor : BuildTensorTable(config)) {
    tensors.push_back({tensor.name, at::randn(tensor.shape).to(dtype)});
  }
  return WriteSafetensors(folder + "/model.safetensors", std::move(tensors), {{"format", "pt"}})
      .status();
}

// Of a K-quant: everything random within its range.
inline AffineQuantizedTensor RandomKQuantRecord(KQuant type, int64_t rows, int64_t columns,
                                                at::ScalarType original_dtype) {
  const QuantizationScheme scheme = KQuantScheme(type);
  const KQuantTraits traits = TraitsOf(type);
  AffineQuantizedTensor record;
  record.block_size = {1, scheme.group_size};
  record.quant_min = scheme.quant_min();
  record.quant_max = scheme.quant_max();
  record.int_data = at::randint(record.quant_min, record.quant_max + 1, {rows, columns}, at::kChar);
  const auto super = [&] {
    return (at::rand({rows, columns / kSuperBlock}) + 0.5).mul(0.01).to(at::kHalf);
  };
  const auto sub = [&] {
    const at::Tensor scales = at::randint(traits.lowest_scale, traits.highest_scale + 1,
                                          {rows, columns / scheme.group_size}, at::kChar);
    return scales.masked_fill(scales == 0, 1);  // or codes would not matter
  };
  record.super_blocks.scale = super();
  record.super_blocks.sub_scale = sub();
  if (!scheme.symmetric) {
    record.super_blocks.minimum = super();
    record.super_blocks.sub_minimum = sub();
  }
  record.mapping_type = scheme.symmetric ? MappingType::kSymmetric : MappingType::kAsymmetric;
  record.bits = scheme.bits;
  record.original_dtype = original_dtype;
  record.k_quant = type;
  return record;
}

// A record with random codes, scales of both signs, and zero points where the scheme has them.
inline AffineQuantizedTensor RandomRecord(const QuantizationScheme& scheme, int64_t rows,
                                          int64_t columns,
                                          at::ScalarType original_dtype = at::kBFloat16) {
  if (scheme.k_quant != KQuant::kNone) {
    return RandomKQuantRecord(scheme.k_quant, rows, columns, original_dtype);
  }
  AffineQuantizedTensor record;
  record.block_size = BlockSizeOf(scheme, rows, columns);
  const std::vector<int64_t> groups = {rows / record.block_size[0], columns / record.block_size[1]};
  record.quant_min = scheme.quant_min();
  record.quant_max = scheme.quant_max();
  record.int_data = at::randint(record.quant_min, record.quant_max + 1, {rows, columns}, at::kChar);
  record.scale = (at::rand(groups) + 0.5).mul(at::randint(0, 2, groups).mul(2).sub(1)).mul(0.01);
  record.scale =
      record.scale.to(scheme.scale_rule == ScaleRule::kTorchao ? original_dtype : at::kHalf);
  record.zero_point = scheme.symmetric
                          ? at::zeros(groups, at::kInt)
                          : at::randint(record.quant_min, record.quant_max + 1, groups, at::kInt);
  record.mapping_type = scheme.symmetric ? MappingType::kSymmetric : MappingType::kAsymmetric;
  record.bits = scheme.bits;
  record.original_dtype = original_dtype;
  return record;
}

// All linear layers of the blocks by `scheme`, except `skipped`.
inline ExportPlan PlanFor(CheckpointInspection source, const QuantizationScheme& scheme,
                          const std::vector<std::string>& skipped = {}) {
  ExportPlan plan;
  for (const TableTensor& tensor : BuildTensorTable(source.config)) {
    if (tensor.role != TensorRole::kLinearWeight) continue;
    if (std::find(skipped.begin(), skipped.end(), tensor.module) != skipped.end()) continue;
    const DType original = source.index.Find(tensor.name)->info.dtype;
    plan.modules.push_back({tensor.module, tensor.shape[0], tensor.shape[1], scheme, original,
                            ScaleDTypeOf(scheme.scale_rule, original)});
  }
  plan.source = std::move(source);
  plan.skipped = skipped;
  plan.default_scheme = scheme;
  return plan;
}

inline std::vector<QuantizedModule> RandomBlock(const ExportPlan& plan, int64_t block,
                                                at::ScalarType original_dtype = at::kBFloat16) {
  const std::string prefix = "model.layers." + std::to_string(block) + ".";
  std::vector<QuantizedModule> modules;
  for (const PlannedModule& module : plan.modules) {
    if (module.module.rfind(prefix, 0) != 0) continue;
    modules.push_back({module.module, RandomRecord(module.scheme, module.out_features,
                                                   module.in_features, original_dtype)});
  }
  return modules;
}

inline void ExpectSameRecord(const AffineQuantizedTensor& a, const AffineQuantizedTensor& b) {
  EXPECT_TRUE(a.int_data.equal(b.int_data));
  EXPECT_EQ(a.scale.scalar_type(), b.scale.scalar_type());
  EXPECT_TRUE(a.scale.equal(b.scale));
  EXPECT_EQ(a.zero_point.scalar_type(), b.zero_point.scalar_type());
  EXPECT_TRUE(a.zero_point.equal(b.zero_point));
  EXPECT_EQ(a.block_size, b.block_size);
  EXPECT_EQ(a.quant_min, b.quant_min);
  EXPECT_EQ(a.quant_max, b.quant_max);
  EXPECT_EQ(a.zero_point_domain, b.zero_point_domain);
  EXPECT_EQ(a.mapping_type, b.mapping_type);
  EXPECT_EQ(a.bits, b.bits);
  EXPECT_EQ(a.original_dtype, b.original_dtype);
}

}  // namespace ptq::testing

#endif  // PTQ_TESTS_FORMATS_TINY_CHECKPOINT_H_
