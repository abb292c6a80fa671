// A random Llama in memory: config, tensors by the tensor table, and a reader of them.
#ifndef PTQ_TESTS_TESTING_TINY_LLAMA_H_
#define PTQ_TESTS_TESTING_TINY_LLAMA_H_

#include <ATen/ATen.h>

#include <cstring>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "formats/checkpoint_reader.h"
#include "formats/headers/model_config.h"
#include "formats/headers/tensor_table.h"

namespace ptq::testing {

class InMemoryCheckpoint final : public CheckpointReader {
 public:
  absl::StatusOr<StoredTensor> Describe(const std::string& name) const override {
    const auto found = tensors.find(name);
    if (found == tensors.end()) return absl::NotFoundError(name + ": no such tensor");
    return StoredTensor{found->second.scalar_type(), found->second.sizes().vec()};
  }
  absl::Status ReadBytes(const std::string& name, int64_t offset, int64_t size,
                         void* out) const override {
    const at::Tensor tensor = tensors.at(name).contiguous();
    std::memcpy(out, static_cast<const char*>(tensor.const_data_ptr()) + offset,
                static_cast<size_t>(size));
    return absl::OkStatus();
  }
  void Prefetch(const std::string&) const override {}
  bool Contains(const std::string& name) const override { return tensors.count(name) > 0; }

  std::map<std::string, at::Tensor> tensors;
};

// 2 blocks, 4 heads of 16 (not hidden / heads), 2 key-value heads, all biases, untied.
inline ModelConfig TinyLlamaConfig() {
  ModelConfig config;
  config.model_type = "llama";
  config.architecture = "LlamaForCausalLM";
  config.vocab_size = 50;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 16;
  config.max_position_embeddings = 64;
  config.norm_eps = 1e-5;
  config.attention_bias = true;
  config.mlp_bias = true;
  config.has_dtype = true;
  return config;
}

// Norms around 1, everything else around 0, large enough for attention to be uneven.
inline InMemoryCheckpoint RandomCheckpoint(const ModelConfig& config, uint64_t seed,
                                           at::ScalarType dtype = at::kFloat) {
  at::manual_seed(seed);
  InMemoryCheckpoint checkpoint;
  for (const TableTensor& row : BuildTensorTable(config)) {
    at::Tensor values = at::randn(row.stored_shape()) * 0.3;
    checkpoint.tensors[row.name] = (row.role == TensorRole::kNorm ? values + 1 : values).to(dtype);
  }
  return checkpoint;
}

}  // namespace ptq::testing

#endif  // PTQ_TESTS_TESTING_TINY_LLAMA_H_
