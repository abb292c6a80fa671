// llama.cpp: ggml/src/gguf.cpp, src/llama-model-loader.cpp, src/llama-model.cpp (load_hparams,
// load_tensors), src/llama-vocab.cpp.
#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "formats/headers/loader_rules/loaders.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

constexpr size_t kMaxNameBytes = 63;  // GGML_MAX_NAME less its final zero

// What load_tensors asks of each block beside the attention's and the feed-forward's own tensors.
struct Architecture {
  const char* name;
  bool layer_norm;  // layer_norm_epsilon and norm biases instead of layer_norm_rms_epsilon
  std::vector<const char*> block;  // tensors "blk.N.X" that must be there
};

const std::vector<Architecture>& Architectures() {
  static const auto* const architectures = new std::vector<Architecture>{
      {"llama",
       false,
       {"attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight",
        "ffn_norm.weight"}},
      {"granite",
       false,
       {"attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight",
        "ffn_norm.weight"}},
      {"qwen2",
       false,
       {"attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_q.bias",
        "attn_k.bias", "attn_v.bias", "attn_output.weight", "ffn_norm.weight", "ffn_gate.weight",
        "ffn_up.weight", "ffn_down.weight"}},
      {"qwen3",
       false,
       {"attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_q_norm.weight",
        "attn_k_norm.weight", "attn_output.weight", "ffn_norm.weight", "ffn_gate.weight",
        "ffn_up.weight", "ffn_down.weight"}},
      {"qwen3moe",
       false,
       {"attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_q_norm.weight",
        "attn_k_norm.weight", "attn_output.weight", "ffn_norm.weight", "ffn_gate_inp.weight",
        "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"}},
      {"qwen2moe",
       false,
       {"attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight",
        "ffn_norm.weight", "ffn_gate_inp.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight",
        "ffn_down_exps.weight", "ffn_gate_inp_shexp.weight", "ffn_gate_shexp.weight",
        "ffn_up_shexp.weight", "ffn_down_shexp.weight"}},
      {"gemma2",
       false,
       {"attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight",
        "post_attention_norm.weight", "ffn_norm.weight", "ffn_gate.weight", "ffn_up.weight",
        "ffn_down.weight", "post_ffw_norm.weight"}},
      {"gemma3",
       false,
       {"attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_q_norm.weight",
        "attn_k_norm.weight", "attn_output.weight", "post_attention_norm.weight", "ffn_norm.weight",
        "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight", "post_ffw_norm.weight"}},
      {"phi3",
       false,
       {"attn_norm.weight", "attn_qkv.weight", "attn_output.weight", "ffn_norm.weight",
        "ffn_up.weight", "ffn_down.weight"}},
      {"olmo2",
       false,
       {"attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_q_norm.weight",
        "attn_k_norm.weight", "attn_output.weight", "post_attention_norm.weight", "ffn_gate.weight",
        "ffn_up.weight", "ffn_down.weight", "post_ffw_norm.weight"}},
      {"starcoder2",
       true,
       {"attn_norm.weight", "attn_norm.bias", "attn_q.weight", "attn_k.weight", "attn_v.weight",
        "attn_output.weight", "ffn_norm.weight", "ffn_norm.bias", "ffn_up.weight",
        "ffn_down.weight"}},
      {"gptneox",
       true,
       {"attn_norm.weight", "attn_norm.bias", "attn_qkv.weight", "attn_qkv.bias",
        "attn_output.weight", "attn_output.bias", "ffn_norm.weight", "ffn_norm.bias",
        "ffn_up.weight", "ffn_up.bias", "ffn_down.weight", "ffn_down.bias"}},
      {"gpt2",
       true,
       {"attn_norm.weight", "attn_norm.bias", "attn_qkv.weight", "attn_qkv.bias",
        "attn_output.weight", "attn_output.bias", "ffn_norm.weight", "ffn_norm.bias",
        "ffn_up.weight", "ffn_up.bias", "ffn_down.weight", "ffn_down.bias"}},
      {"deepseek2",
       false,
       {"attn_norm.weight", "attn_kv_a_mqa.weight", "attn_kv_a_norm.weight", "attn_output.weight",
        "ffn_norm.weight"}},
  };
  return *architectures;
}

// A dense feed-forward network or experts: both are llama's, granite's and deepseek2's.
bool HasDenseOrExperts(const std::set<std::string>& names, const std::string& block) {
  const auto all = [&](std::initializer_list<const char*> parts) {
    return std::all_of(parts.begin(), parts.end(),
                       [&](const char* part) { return names.count(block + part) > 0; });
  };
  return all({"ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"}) ||
         all({"ffn_gate_inp.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight",
              "ffn_down_exps.weight"});
}

void RequireKey(const GgufHeader& header, const std::string& key, Findings* findings) {
  if (header.values.count(key) > 0) return;
  findings->Refuse(key,
                   "the key is missing, and llama.cpp does not load a model without it; write "
                   "the file again");
}

// gguf_init_from_file: offsets are what the sizes before them add up to.
void CheckTensorData(const GgufHeader& header, Findings* findings) {
  std::set<std::string> names;
  int64_t expected = 0;
  bool ordered = true;
  for (const GgufTensor& tensor : header.tensors) {
    const GgmlType& type = *FindGgmlType(tensor.type);
    if (!names.insert(tensor.name).second) {
      findings->Refuse(Quote(tensor.name), "the tensor is there twice");
    }
    if (tensor.name.size() > kMaxNameBytes) {
      findings->Refuse(Quote(tensor.name), "the name has more than 63 bytes");
    }
    if (tensor.shape.back() % type.block_elements != 0) {
      findings->Refuse(tensor.name,
                       absl::StrFormat("rows of %d do not divide into %s's blocks of %d; write the "
                                       "tensor in another type",
                                       tensor.shape.back(), type.name, type.block_elements));
      return;
    }
    int64_t elements = 1;
    for (const int64_t size : tensor.shape) elements *= size;
    if (ordered && tensor.offset != static_cast<uint64_t>(expected)) {
      ordered = false;
      findings->Refuse(tensor.name,
                       absl::StrFormat("its data begin at %d, where the tensors before it end at "
                                       "%d; write the file again",
                                       tensor.offset, expected));
    }
    expected += elements / type.block_elements * type.block_bytes;
    expected = (expected + header.alignment - 1) / header.alignment * header.alignment;
  }
  // The last tensor's padding may be cut off.
  if (ordered && header.data_offset + expected > header.file_size + header.alignment - 1) {
    findings->Refuse("", absl::StrFormat("The file has %d bytes, and its tensors end at %d: it is "
                                         "cut off; copy or write it again.",
                                         header.file_size, header.data_offset + expected));
  }
}

// llama_vocab::impl::load.
void CheckVocabulary(const GgufHeader& header, Findings* findings) {
  RequireKey(header, "tokenizer.ggml.model", findings);
  RequireKey(header, "tokenizer.ggml.tokens", findings);
  const std::string model = header.Text("tokenizer.ggml.model");
  if (model == "gpt2") {
    RequireKey(header, "tokenizer.ggml.merges", findings);
    if (header.Text("tokenizer.ggml.pre").empty()) {
      findings->Remark("tokenizer.ggml.pre",
                       "the key is missing, so llama.cpp splits text by its default rule, which "
                       "may not be the model's");
    }
  }
  if (model == "llama") RequireKey(header, "tokenizer.ggml.scores", findings);
  const auto tokens = header.values.find("tokenizer.ggml.tokens");
  const GgufTensor* embedding = header.Find("token_embd.weight");
  if (tokens == header.values.end() || embedding == nullptr || embedding->shape.size() != 2) return;
  const auto count = static_cast<int64_t>(tokens->second.length);
  if (count == embedding->shape[0]) return;
  findings->Refuse("token_embd.weight",
                   absl::StrFormat("has %d rows, where tokenizer.ggml.tokens lists %d tokens; pad "
                                   "the list to the embedding",
                                   embedding->shape[0], count));
}

void CheckShape(const GgufHeader& header, const std::string& name,
                const std::vector<int64_t>& shape, Findings* findings) {
  const GgufTensor* tensor = header.Find(name);
  if (tensor == nullptr || tensor->shape == shape) return;
  findings->Refuse(name, absl::StrFormat("has shape %s, where the keys ask for %s",
                                         ShapeToString(tensor->shape), ShapeToString(shape)));
}

void CheckModel(const GgufHeader& header, const Architecture& architecture, Findings* findings) {
  const std::string prefix = std::string(architecture.name) + ".";
  for (const char* key : {"context_length", "embedding_length", "block_count",
                          "feed_forward_length", "attention.head_count"}) {
    RequireKey(header, prefix + key, findings);
  }
  RequireKey(header,
             prefix + (architecture.layer_norm ? "attention.layer_norm_epsilon"
                                               : "attention.layer_norm_rms_epsilon"),
             findings);
  std::set<std::string> names;
  for (const GgufTensor& tensor : header.tensors) names.insert(tensor.name);
  const auto require = [&](const std::string& name) {
    if (names.count(name) > 0) return;
    findings->Refuse(name,
                     "the tensor is missing, and llama.cpp does not load the architecture "
                     "without it; write the file again");
  };
  require("token_embd.weight");
  require("output_norm.weight");
  const int64_t blocks = header.Integer(prefix + "block_count").value_or(0);
  // More blocks than tensors: the key is wrong, which the first missing one says.
  const int64_t checked = std::min<int64_t>(blocks, static_cast<int64_t>(names.size()) + 1);
  const std::string name = architecture.name;
  for (int64_t block = 0; block < checked; ++block) {
    const std::string at = absl::StrFormat("blk.%d.", block);
    for (const char* part : architecture.block) require(at + part);
    if ((name == "llama" || name == "granite" || name == "deepseek2") &&
        !HasDenseOrExperts(names, at)) {
      findings->Refuse(at + "ffn_*",
                       "neither ffn_gate, ffn_up and ffn_down nor their experts are there");
    }
  }
  const int64_t width = header.Integer(prefix + "embedding_length").value_or(0);
  CheckShape(header, "output_norm.weight", {width}, findings);
  if (const GgufTensor* embedding = header.Find("token_embd.weight"); embedding != nullptr) {
    CheckShape(header, "token_embd.weight", {embedding->shape.front(), width}, findings);
  }
  // Ours is laid out by the same keys in every block: the first one shows it.
  const auto heads = header.Integer(prefix + "attention.head_count");
  if (!heads || *heads == 0 || header.Find("blk.0.attn_q.weight") == nullptr) return;
  const int64_t head = header.Integer(prefix + "attention.key_length").value_or(width / *heads);
  const int64_t kv_heads = header.Integer(prefix + "attention.head_count_kv").value_or(*heads);
  if (name == "deepseek2") return;
  CheckShape(header, "blk.0.attn_q.weight", {*heads * head, width}, findings);
  CheckShape(header, "blk.0.attn_k.weight", {kv_heads * head, width}, findings);
}

}  // namespace

void CheckLlamaCpp(const LoadedFolder& folder, Findings* findings) {
  // convert_hf_to_gguf.py: prepare_tensors' dequantization of quant_method.
  const bool converts =
      folder.method == "none" || folder.method == "gptq" || folder.method == "compressed-tensors";
  findings->Refuse("", std::string("llama.cpp reads GGUF files, not safetensors: write the model "
                                   "with the format gguf") +
                           (converts ? ", or convert this folder with llama.cpp's "
                                       "convert_hf_to_gguf.py, which dequantizes it."
                                     : "."));
}

void CheckGgufForLlamaCpp(const GgufHeader& header, Findings* findings) {
  CheckTensorData(header, findings);
  RequireKey(header, "general.architecture", findings);
  CheckVocabulary(header, findings);
  const std::string name = header.Text("general.architecture");
  if (name.empty()) return;
  const auto& known = Architectures();
  const auto found = std::find_if(known.begin(), known.end(),
                                  [&name](const Architecture& one) { return name == one.name; });
  if (found == known.end()) {
    findings->NotChecked("The tensors and keys that llama.cpp asks of the architecture " +
                         Quote(name) + " are not known here.");
    return;
  }
  CheckModel(header, *found, findings);
}

}  // namespace ptq
