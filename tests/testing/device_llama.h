// A Llama block on a GPU, of widths that the kernels take, for tests that compare ways through it.
#ifndef PTQ_TESTS_TESTING_DEVICE_LLAMA_H_
#define PTQ_TESTS_TESTING_DEVICE_LLAMA_H_

#include <ATen/ATen.h>

#include <cstdint>
#include <memory>

#include "models/decoder_model.h"
#include "tests/testing/tiny_llama.h"

namespace ptq::testing {

inline ModelConfig DeviceLlamaConfig(int64_t heads, int64_t key_heads, int64_t head_dim,
                                     bool bias) {
  ModelConfig config = TinyLlamaConfig();
  config.hidden_size = 192;
  config.intermediate_size = 272;
  config.num_attention_heads = heads;
  config.num_key_value_heads = key_heads;
  config.head_dim = head_dim;
  config.attention_bias = bias;
  config.mlp_bias = bias;
  return config;
}

// Block 1 of a random model, computing in `dtype` on samples of kLength tokens. Not movable: the
// model reads the checkpoint.
struct DeviceLlamaBlock {
  static constexpr int64_t kLength = 24;

  DeviceLlamaBlock(const ModelConfig& config, at::ScalarType dtype)
      : checkpoint(RandomCheckpoint(config, 4)) {
    // Weights of a size that keeps activations near 1, exact in every dtype.
    for (auto& [name, tensor] : checkpoint.tensors) {
      if (tensor.dim() == 2) tensor.mul_(0.3);
      tensor = tensor.to(at::kBFloat16).to(at::kFloat);
    }
    model = DecoderModel::Create(config, checkpoint, {.device = at::kCUDA, .dtype = dtype}).value();
    block = model->LoadBlock(1).value();
    rotary = model->MakeRotaryTable(kLength);
  }
  DeviceLlamaBlock(const DeviceLlamaBlock&) = delete;
  DeviceLlamaBlock& operator=(const DeviceLlamaBlock&) = delete;

  InMemoryCheckpoint checkpoint;
  std::unique_ptr<DecoderModel> model;
  std::unique_ptr<DecoderBlock> block;
  RotaryTable rotary;
};

}  // namespace ptq::testing

#endif  // PTQ_TESTS_TESTING_DEVICE_LLAMA_H_
