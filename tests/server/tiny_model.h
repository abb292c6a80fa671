// The smallest checkpoint that CreateModel accepts, as files in memory.
#ifndef PTQ_TESTS_SERVER_TINY_MODEL_H_
#define PTQ_TESTS_SERVER_TINY_MODEL_H_

#include <map>
#include <string>
#include <vector>

#include "common/file.h"
#include "common/json.h"
#include "formats/headers/model_config.h"
#include "formats/headers/tensor_table.h"

namespace ptq::testing {

inline constexpr char kTinyConfig[] = R"({
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
  "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
  "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 64, "max_position_embeddings": 128,
  "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "eos_token_id": 1, "torch_dtype": "float16"
})";

// Names to bytes. All weights are zero; `tokenizer` adds an (empty) tokenizer.json.
inline std::map<std::string, std::string> TinyModelFiles(bool tokenizer = true) {
  std::vector<std::string> warnings;
  const ModelConfig config = *ParseModelConfig(kTinyConfig, &warnings);
  Json header = Json::object();
  int64_t offset = 0;
  for (const TableTensor& tensor : BuildTensorTable(config)) {
    int64_t size = 2;
    for (const int64_t dimension : tensor.shape) size *= dimension;
    header[tensor.name] = {
        {"dtype", "F16"}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + size}}};
    offset += size;
  }
  const std::string text = DumpJson(header);
  std::string file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<char>(text.size() >> (8 * i) & 0xff));
  file += text + std::string(static_cast<size_t>(offset), '\0');
  std::map<std::string, std::string> files = {{"config.json", kTinyConfig},
                                              {"model.safetensors", file}};
  if (tokenizer) files["tokenizer.json"] = "{}";
  return files;
}

inline void WriteTinyModel(const std::string& folder, bool tokenizer = true) {
  MakeDirectories(folder).IgnoreError();
  for (const auto& [name, bytes] : TinyModelFiles(tokenizer)) {
    WriteFileAtomically(JoinPath(folder, name), bytes).IgnoreError();
  }
}

}  // namespace ptq::testing

#endif  // PTQ_TESTS_SERVER_TINY_MODEL_H_
