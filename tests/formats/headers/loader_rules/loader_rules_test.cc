// Each rule of each loader: a model that keeps all of them passes, and the same model with the one
// thing changed gets the sentence.
#include "formats/headers/loader_rules/loader_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ostream>

#include "tests/formats/headers/loader_rules/quantized_models.h"

namespace ptq {
namespace {

using ::testing::AllOf;
using testing::AutoRoundModel;
using testing::AwqModel;
using testing::CompressedTensorsModel;
using ::testing::ElementsAre;
using testing::EraseSketch;
using testing::FolderTest;
using testing::GptqModel;
using testing::GptqParts;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::IsOk;
using testing::PackedGroup;
using testing::PackedParts;
using testing::PlainModel;
using testing::QuantizedModel;
using testing::StatusIs;
using testing::TensorSketch;
using testing::TorchaoModel;
using testing::WriteQuantizedModel;

constexpr char kDown[] = "model.layers.1.mlp.down_proj";
constexpr char kQuery[] = "model.layers.0.self_attn.q_proj";

class LoaderRulesTest : public FolderTest {
 protected:
  LoaderVerdict Judge(const QuantizedModel& model, Loader loader) {
    WriteQuantizedModel(folder_, model);
    const auto check = CheckFolder(folder_);
    EXPECT_THAT(check, IsOk());
    return check.ok() ? check->verdicts[static_cast<size_t>(loader)] : LoaderVerdict();
  }
};

// The same models with a head of the blocks' scheme.
constexpr int64_t kVocabulary = 128;
QuantizedModel WithHead(QuantizedModel model, std::vector<TensorSketch> parts) {
  EraseSketch(&model.tensors, "lm_head.weight");
  // Marlin's tiles are multiples of 64.
  model.config["vocab_size"] = kVocabulary;
  model.tensor("model.embed_tokens.weight").shape[0] = kVocabulary;
  for (TensorSketch& part : parts) model.tensors.push_back(std::move(part));
  return model;
}
QuantizedModel PackedHead() {
  QuantizedModel model =
      WithHead(CompressedTensorsModel(), PackedParts("lm_head", kVocabulary, 256, 4, 128, true));
  model.quantization()["ignore"] = Json::array();
  model.quantization()["config_groups"]["group_0"]["targets"] = {"Linear", "lm_head"};
  return model;
}
QuantizedModel GptqHead() {
  QuantizedModel model = WithHead(GptqModel(), GptqParts("lm_head", kVocabulary, 256, 4, 128));
  model.quantization()["lm_head"] = true;
  return model;
}
QuantizedModel AutoRoundHead() {
  std::vector<TensorSketch> parts = GptqParts("lm_head", kVocabulary, 256, 4, 128);
  parts.pop_back();  // g_idx
  QuantizedModel model = WithHead(AutoRoundModel(), std::move(parts));
  model.quantization()["extra_config"]["lm_head"] = {{"bits", 4}, {"group_size", 128}};
  return model;
}

// --- A model that keeps the rules ---------------------------------------------------------------

struct Pass {
  const char* name;
  std::function<QuantizedModel()> model;
  Loader loader;
  Verdict verdict = Verdict::kLoads;
};
void PrintTo(const Pass& pass, std::ostream* out) { *out << pass.name; }

class PassTest : public LoaderRulesTest, public ::testing::WithParamInterface<Pass> {};

TEST_P(PassTest, Loads) {
  const LoaderVerdict verdict = Judge(GetParam().model(), GetParam().loader);
  EXPECT_EQ(VerdictName(verdict.verdict), std::string(VerdictName(GetParam().verdict)));
  EXPECT_THAT(verdict.problems, IsEmpty());
  EXPECT_EQ(verdict.remarks.empty(), GetParam().verdict == Verdict::kLoads);
}

INSTANTIATE_TEST_SUITE_P(
    Loaders, PassTest,
    ::testing::Values(
        Pass{"plain_transformers", PlainModel, Loader::kTransformers},
        Pass{"plain_vllm", PlainModel, Loader::kVllm},
        Pass{"plain_sglang", PlainModel, Loader::kSglang},
        Pass{"packed_transformers", [] { return CompressedTensorsModel(); }, Loader::kTransformers},
        Pass{"packed_vllm", [] { return CompressedTensorsModel(); }, Loader::kVllm},
        Pass{"packed_sglang", [] { return CompressedTensorsModel(); }, Loader::kSglang},
        Pass{"packed_asymmetric_vllm", [] { return CompressedTensorsModel(4, 32, false); },
             Loader::kVllm},
        Pass{"packed_8_bit_channel_vllm", [] { return CompressedTensorsModel(8, -1); },
             Loader::kVllm},
        Pass{"packed_3_bit_transformers", [] { return CompressedTensorsModel(3, 32); },
             Loader::kTransformers},
        Pass{"gptq_transformers", [] { return GptqModel(); }, Loader::kTransformers},
        Pass{"gptq_vllm", [] { return GptqModel(); }, Loader::kVllm},
        Pass{"gptq_8_bit_vllm", [] { return GptqModel(8, -1); }, Loader::kVllm},
        Pass{"gptq_sglang", [] { return GptqModel(); }, Loader::kSglang},
        Pass{"gptq_3_bit_sglang", [] { return GptqModel(3, 32); }, Loader::kSglang,
             Verdict::kLoadsWithRemark},
        Pass{"awq_transformers", [] { return AwqModel(); }, Loader::kTransformers},
        Pass{"awq_vllm", [] { return AwqModel(); }, Loader::kVllm},
        Pass{"awq_sglang", [] { return AwqModel(); }, Loader::kSglang},
        Pass{"auto_round_transformers", AutoRoundModel, Loader::kTransformers},
        Pass{"auto_round_vllm", AutoRoundModel, Loader::kVllm},
        Pass{"auto_round_sglang", AutoRoundModel, Loader::kSglang},
        Pass{"intx_transformers", [] { return TorchaoModel(); }, Loader::kTransformers},
        Pass{"int8_transformers", [] { return TorchaoModel(true); }, Loader::kTransformers},
        Pass{"int8_vllm", [] { return TorchaoModel(true); }, Loader::kVllm},
        Pass{"packed_head_transformers", PackedHead, Loader::kTransformers},
        Pass{"packed_head_vllm", PackedHead, Loader::kVllm, Verdict::kLoadsWithRemark},
        Pass{"gptq_head_vllm", GptqHead, Loader::kVllm},
        Pass{"gptq_head_sglang", GptqHead, Loader::kSglang},
        Pass{"auto_round_head_transformers", AutoRoundHead, Loader::kTransformers},
        Pass{"auto_round_head_vllm", AutoRoundHead, Loader::kVllm},
        Pass{"auto_round_head_sglang", AutoRoundHead, Loader::kSglang}),
    [](const auto& test) { return std::string(test.param.name); });

// --- One thing broken ---------------------------------------------------------------------------

struct Break {
  const char* name;
  std::function<QuantizedModel()> model;
  Loader loader;
  std::function<void(QuantizedModel&)> change;
  const char* sentence;  // a part of it
  bool remark = false;   // a remark rather than a problem
};
void PrintTo(const Break& one, std::ostream* out) { *out << one.name; }

class BreakTest : public LoaderRulesTest, public ::testing::WithParamInterface<Break> {};

TEST_P(BreakTest, GetsTheSentence) {
  QuantizedModel model = GetParam().model();
  GetParam().change(model);
  const LoaderVerdict verdict = Judge(model, GetParam().loader);
  if (GetParam().remark) {
    EXPECT_EQ(verdict.verdict, Verdict::kLoadsWithRemark);
    EXPECT_THAT(verdict.remarks, ElementsAre(HasSubstr(GetParam().sentence)));
    EXPECT_THAT(verdict.problems, IsEmpty());
  } else {
    EXPECT_EQ(verdict.verdict, Verdict::kDoesNotLoad);
    EXPECT_THAT(verdict.problems, ElementsAre(HasSubstr(GetParam().sentence)));
  }
}

QuantizedModel Packed() { return CompressedTensorsModel(); }
QuantizedModel Gptq() { return GptqModel(); }
QuantizedModel Awq() { return AwqModel(); }
QuantizedModel Intx() { return TorchaoModel(); }
QuantizedModel Int8() { return TorchaoModel(true); }

// The layer's parts by another scheme, under a group of its own.
void Repack(QuantizedModel& model, const std::string& module, int bits) {
  std::vector<int64_t> shape;
  for (const TableTensor& row :
       BuildTensorTable(testing::TinyModelConfig(testing::LlamaConfig()))) {
    if (row.name == module + ".weight") shape = row.shape;
  }
  for (const TensorSketch& part : PackedParts(module, shape[0], shape[1], bits, 128, true)) {
    model.tensor(part.name) = part;
  }
  Json group = PackedGroup(bits, 128, true);
  group["targets"] = {module};
  model.quantization()["config_groups"]["group_1"] = group;
}

// The layer keeps its dtype.
void Unpack(QuantizedModel& model, const std::string& module) {
  std::erase_if(model.tensors, [&module](const TensorSketch& tensor) {
    return tensor.name.compare(0, module.size() + 1, module + ".") == 0;
  });
  for (const TableTensor& row :
       BuildTensorTable(testing::TinyModelConfig(testing::LlamaConfig()))) {
    if (row.name == module + ".weight") model.tensors.push_back({row.name, DType::kF16, row.shape});
  }
}

const std::vector<Break>& Breaks() {
  static const auto* const breaks = new std::vector<Break>{
      // The folder itself.
      {"no_quant_method", Packed, Loader::kTransformers,
       [](auto& m) { m.quantization().erase("quant_method"); }, "has no quant_method"},
      {"missing_norm", Packed, Loader::kTransformers,
       [](auto& m) { EraseSketch(&m.tensors, "model.norm.weight"); },
       "model.norm.weight: the model needs this tensor and no file has it"},
      {"wrong_norm_shape", Packed, Loader::kVllm,
       [](auto& m) { m.tensor("model.norm.weight").shape = {128}; },
       "has shape [128], where the layer and quantization_config ask for [256]"},
      {"stray_file", Packed, Loader::kVllm,
       [](auto& m) { m.files["consolidated.safetensors"] = "x"; },
       "\"consolidated.safetensors\": weights that the index does not name"},
      {"index_names_no_file", Packed, Loader::kVllm,
       [](auto& m) {
         m.files["model.safetensors.index.json"] =
             R"({"metadata":{},"weight_map":{"a":"model-00001-of-00001.safetensors"}})";
       },
       "the folder does not have it"},
      {"plain_codes", PlainModel, Loader::kTransformers,
       [](auto& m) { m.tensors.push_back({"lm_head.qweight", DType::kI32, {8, 32}}); },
       "config.json: has no quantization_config, and tensors such as \"lm_head.qweight\" are codes"},
      {"no_model_type", Packed, Loader::kTransformers, [](auto& m) { m.config.erase("model_type"); },
       "has no model_type"},
      {"no_architectures", Packed, Loader::kVllm, [](auto& m) { m.config["architectures"] = nullptr; },
       "has no architectures, by which vLLM chooses"},
      {"no_tokenizer_vllm", Packed, Loader::kVllm, [](auto& m) { m.files.clear(); },
       "The folder has no tokenizer, which vLLM reads from it"},
      {"no_tokenizer_sglang", Packed, Loader::kSglang, [](auto& m) { m.files.clear(); },
       "The folder has no tokenizer, which SGLang reads from it"},
      {"no_tokenizer_transformers", Packed, Loader::kTransformers, [](auto& m) { m.files.clear(); },
       "The folder has no tokenizer", true},
      {"stray_tensor_vllm", Packed, Loader::kVllm,
       [](auto& m) { m.tensors.push_back({"model.extra.weight", DType::kF16, {4}}); },
       "\"model.extra.weight\": the model has no such tensor, and vLLM fails on names"},
      {"stray_tensor_transformers", Packed, Loader::kTransformers,
       [](auto& m) { m.tensors.push_back({"model.extra.weight", DType::kF16, {4}}); },
       "transformers leaves it out", true},
      {"tied_head_is_written", PlainModel, Loader::kVllm,
       [](auto& m) { m.config["tie_word_embeddings"] = true; },
       "lm_head.weight: tie_word_embeddings is true", true},

      // compressed-tensors.
      {"ct_unknown_key", Packed, Loader::kTransformers,
       [](auto& m) {
         m.quantization()["config_groups"]["group_0"]["weights"]["pack_factor"] = 8;
       },
       "group_0.weights has the key \"pack_factor\""},
      {"ct_no_groups", Packed, Loader::kVllm, [](auto& m) { m.quantization().erase("config_groups"); },
       "has no config_groups"},
      {"ct_group_without_size", Packed, Loader::kTransformers,
       [](auto& m) {
         m.quantization()["config_groups"]["group_0"]["weights"]["group_size"] = nullptr;
       },
       "strategy group needs a positive group_size"},
      {"ct_channel_with_size", [] { return CompressedTensorsModel(4, -1); }, Loader::kTransformers,
       [](auto& m) { m.quantization()["config_groups"]["group_0"]["weights"]["group_size"] = 128; },
       "group_size needs the strategy group"},
      {"ct_act_order", Packed, Loader::kTransformers,
       [](auto& m) { m.quantization()["config_groups"]["group_0"]["weights"]["actorder"] = "group"; },
       "actorder group is no longer read"},
      {"ct_no_shape", Packed, Loader::kVllm,
       [](auto& m) { EraseSketch(&m.tensors, std::string(kDown) + ".weight_shape"); },
       "model.layers.1.mlp.down_proj: tensor weight_shape (the layer's shape) is missing"},
      {"ct_no_zero_points", [] { return CompressedTensorsModel(4, 128, false); }, Loader::kVllm,
       [](auto& m) { EraseSketch(&m.tensors, std::string(kDown) + ".weight_zero_point"); },
       "tensor weight_zero_point (asymmetric zero points) is missing"},
      {"ct_scale_shape", Packed, Loader::kVllm,
       [](auto& m) { m.tensor(std::string(kDown) + ".weight_scale").shape = {4, 256}; },
       "weight_scale: has shape [4, 256], where the layer and quantization_config ask for [256, 4]"},
      {"ct_codes_dtype", Packed, Loader::kVllm,
       [](auto& m) { m.tensor(std::string(kDown) + ".weight_packed").dtype = DType::kU32; },
       "weight_packed: has dtype U32, where loaders expect I32"},
      {"ct_wrong_bits", Packed, Loader::kTransformers,
       [](auto& m) {
         m.quantization()["config_groups"]["group_1"] = PackedGroup(8, 128, true);
         m.quantization()["config_groups"]["group_1"]["targets"] = {kDown};
       },
       "weight_packed: has shape [256, 64], where the layer and quantization_config ask for"},
      {"ct_packed_but_ignored", Packed, Loader::kVllm,
       [](auto& m) { m.quantization()["ignore"].push_back(kDown); },
       "is packed, and quantization_config ignores it"},
      {"ct_plain_but_targeted", Packed, Loader::kTransformers, [](auto& m) { Unpack(m, kDown); },
       "model.layers.1.mlp.down_proj: is not quantized, but a group of quantization_config targets"},
      {"ct_head_not_ignored", Packed, Loader::kTransformers,
       [](auto& m) { m.quantization()["ignore"] = Json::array(); },
       "lm_head: is not quantized, but a group"},
      {"ct_head_sglang", PackedHead, Loader::kSglang, [](auto&) {},
       "lm_head: SGLang knows no quantized head in compressed-tensors"},
      {"ct_head_vllm", PackedHead, Loader::kVllm, [](auto&) {},
       "releases of vLLM before 0.29 know no quantized head", true},
      {"gptq_head_transformers", GptqHead, Loader::kTransformers, [](auto&) {},
       "lm_head: transformers reads GPTQ layers of blocks alone"},
      {"gptq_head_without_its_key", GptqHead, Loader::kVllm,
       [](auto& m) { m.quantization()["lm_head"] = false; },
       "lm_head: is packed, and quantization_config says that it is not quantized"},
      {"auto_round_head_that_is_not_named", AutoRoundHead, Loader::kTransformers,
       [](auto& m) { m.quantization().erase("extra_config"); },
       "lm_head: is packed, and quantization_config says that it is not quantized"},
      {"ct_no_target", Packed, Loader::kVllm,
       [](auto& m) {
         m.quantization()["config_groups"]["group_0"]["targets"] = {"re:.*self_attn.*", "re:.*up_proj",
                                                                    "re:.*gate_proj"};
       },
       "is packed, and no group of quantization_config targets it"},
      {"ct_3_bits_vllm", [] { return CompressedTensorsModel(3, 32); }, Loader::kVllm, [](auto&) {},
       "vLLM reads pack-quantized weights of 4 or 8 bits, and these have 3"},
      {"ct_group_16_vllm", [] { return CompressedTensorsModel(4, 16); }, Loader::kVllm, [](auto&) {},
       "vLLM's kernels take group_size -1 (channel), 32, 64 or 128, and it is 16"},
      {"ct_8_bit_asymmetric_vllm", [] { return CompressedTensorsModel(8, 128, false); },
       Loader::kVllm, [](auto&) {}, "8 bits with zero points have no Marlin kernel", true},
      {"ct_8_bit_asymmetric_sglang", [] { return CompressedTensorsModel(8, 128, false); },
       Loader::kSglang, [](auto&) {}, "SGLang has no kernel for 8 bits with zero points"},
      {"ct_asymmetric_sglang", [] { return CompressedTensorsModel(4, 128, false); },
       Loader::kSglang, [](auto&) {}, "older releases of SGLang", true},
      {"ct_2_bits_sglang", [] { return CompressedTensorsModel(2, 32); }, Loader::kSglang,
       [](auto&) {}, "SGLang reads pack-quantized weights of 4 or 8 bits"},
      {"ct_group_16_sglang", [] { return CompressedTensorsModel(4, 16); }, Loader::kSglang,
       [](auto&) {}, "SGLang's Marlin kernels take group_size"},
      {"ct_split_qkv_vllm", Packed, Loader::kVllm, [](auto& m) { Repack(m, kQuery, 8); },
       "model.layers.0.self_attn.qkv_proj: q_proj, k_proj and v_proj are loaded as one layer"},
      {"ct_split_gate_up_sglang", Packed, Loader::kSglang,
       [](auto& m) { Repack(m, "model.layers.1.mlp.gate_proj", 8); },
       "model.layers.1.mlp.gate_up_proj: gate_proj and up_proj are loaded as one layer"},
      {"ct_half_quantized_qkv_vllm", Packed, Loader::kVllm,
       [](auto& m) {
         Unpack(m, kQuery);
         m.quantization()["ignore"].push_back(kQuery);
       },
       "or none of them any"},

      // GPTQ.
      {"gptq_no_bits", Gptq, Loader::kVllm, [](auto& m) { m.quantization().erase("bits"); },
       "must have bits and group_size"},
      {"gptq_no_sym", Gptq, Loader::kVllm, [](auto& m) { m.quantization().erase("sym"); },
       "has no sym, and vLLM reads it without a default"},
      {"gptq_no_desc_act", Gptq, Loader::kSglang, [](auto& m) { m.quantization().erase("desc_act"); },
       "has no desc_act, and SGLang reads it"},
      {"gptq_damp", Gptq, Loader::kTransformers,
       [](auto& m) { m.quantization()["damp_percent"] = 1; },
       "damp_percent must lie between 0 and 1"},
      {"gptq_no_g_idx", Gptq, Loader::kTransformers,
       [](auto& m) { EraseSketch(&m.tensors, std::string(kDown) + ".g_idx"); },
       "tensor g_idx is missing"},
      {"gptq_transposed_codes", Gptq, Loader::kTransformers,
       [](auto& m) { m.tensor(std::string(kDown) + ".qweight").shape = {256, 64}; },
       "has shape [256, 64], where the layer and quantization_config ask for [64, 256]"},
      {"gptq_no_zeros", Gptq, Loader::kVllm,
       [](auto& m) { EraseSketch(&m.tensors, std::string(kDown) + ".qzeros"); },
       "tensor qzeros (the zero points) is missing"},
      {"gptq_asymmetric_vllm", [] { return GptqModel(4, 128, false); }, Loader::kVllm, [](auto&) {},
       "vLLM takes GPTQ weights of 4 or 8 bits, symmetric, and these have 4, asymmetric"},
      {"gptq_3_bits_vllm", [] { return GptqModel(3, 32); }, Loader::kVllm, [](auto&) {},
       "and these have 3, symmetric"},
      {"gptq_group_16_vllm", [] { return GptqModel(4, 16); }, Loader::kVllm, [](auto&) {},
       "vLLM's Marlin kernels take group_size"},
      {"gptq_5_bits_transformers", [] { return GptqModel(5, 32); }, Loader::kTransformers,
       [](auto&) {}, "transformers reads GPTQ weights of 2, 3, 4 or 8 bits, and these have 5"},
      {"gptq_5_bits_sglang", [] { return GptqModel(5, 32); }, Loader::kSglang, [](auto&) {},
       "SGLang reads GPTQ weights of 2, 3, 4 or 8 bits"},
      {"gptq_asymmetric_transformers", [] { return GptqModel(4, 128, false); },
       Loader::kTransformers, [](auto&) {}, "GPTQModel takes asymmetric GPTQ v1 weights only", true},
      {"gptq_bfloat16", Gptq, Loader::kVllm, [](auto& m) { m.config["dtype"] = "bfloat16"; },
       "dtype is bfloat16, so vLLM rounds the float16 scales once more", true},
      {"gptq_unlisted_plain_sglang", Gptq, Loader::kSglang, [](auto& m) { Unpack(m, kDown); },
       "is not quantized, and quantization_config does not say so; exempt it by \"dynamic\""},
      {"gptq_plain_transformers", Gptq, Loader::kTransformers, [](auto& m) { Unpack(m, kDown); },
       "name the quantized layers in \"modules_in_block_to_quantize\""},
      {"gptq_unnamed_transformers", Gptq, Loader::kTransformers,
       [](auto& m) {
         m.quantization()["modules_in_block_to_quantize"] = {{"self_attn.q_proj", "k_proj"}};
       },
       "is not named in \"modules_in_block_to_quantize\""},
      {"gptq_other_bits_transformers", Gptq, Loader::kTransformers,
       [](auto& m) {
         m.quantization()["dynamic"]["-:lm_head"] = Json::object();
         m.quantization()["group_size"] = 64;
         m.quantization()["dynamic"]["+:model"] = {{"group_size", 128}};
       },
       "which transformers takes for all layers"},
      {"gptq_dynamic_misses_the_fused_name", Gptq, Loader::kVllm,
       [](auto& m) {
         m.quantization()["dynamic"][R"(+:.*self_attn\.[qkv]_proj)"] = {{"bits", 8}};
         for (const char* block : {"0", "1"}) {
           for (const char* part : {"q", "k", "v"}) {
             const std::string module =
                 std::string("model.layers.") + block + ".self_attn." + part + "_proj";
             const int64_t n = part[0] == 'q' ? 256 : 128;
             for (const TensorSketch& sketch : testing::GptqParts(module, n, 256, 8, 128)) {
               m.tensor(sketch.name) = sketch;
             }
           }
         }
       },
       "vLLM matches \"dynamic\" against this fused name"},

      // AWQ.
      {"awq_no_zero_point", Awq, Loader::kVllm, [](auto& m) { m.quantization().erase("zero_point"); },
       "has no zero_point, and vLLM reads it"},
      {"awq_group_16", [] { return AwqModel(16); }, Loader::kSglang, [](auto&) {},
       "SGLang's AWQ kernels take group_size -1 (channel) or a multiple of 32, and it is 16"},
      {"awq_group_256", [] { return AwqModel(256); }, Loader::kVllm, [](auto&) {},
       "group_size 256 has no Marlin kernel", true},
      {"awq_skips_by_substring", Awq, Loader::kVllm,
       [](auto& m) { m.quantization()["modules_to_not_convert"] = {"down_proj"}; },
       "is packed, and quantization_config says that it is not quantized"},
      {"awq_unlisted_plain", Awq, Loader::kTransformers, [](auto& m) { Unpack(m, kDown); },
       "exempt it by \"modules_to_not_convert\""},

      // auto-round.
      {"auto_round_own_packing_vllm", AutoRoundModel, Loader::kVllm,
       [](auto& m) { m.quantization()["packing_format"] = "auto_round"; },
       "packing_format \"auto_round\" is none that vLLM reads"},
      {"auto_round_own_packing_sglang", AutoRoundModel, Loader::kSglang,
       [](auto& m) { m.quantization()["packing_format"] = "auto_round"; },
       "packing_format \"auto_round\" is none that SGLang reads"},
      {"auto_round_asymmetric", AutoRoundModel, Loader::kTransformers,
       [](auto& m) { m.quantization()["sym"] = false; },
       "auto-round reads asymmetric weights in its own packing or AWQ's"},
      {"auto_round_unlisted_plain", AutoRoundModel, Loader::kTransformers,
       [](auto& m) { Unpack(m, kDown); }, "add it to \"extra_config\" with \"bits\": 16"},

      // torchao.
      {"torchao_string_type", Intx, Loader::kTransformers,
       [](auto& m) { m.quantization()["quant_type"] = "int4_weight_only"; },
       "quant_type must be an object with the one key \"default\""},
      {"torchao_tensor_granularity", Intx, Loader::kTransformers,
       [](auto& m) {
         m.quantization()["quant_type"]["default"]["_data"]["granularity"] = {{"_type", "PerTensor"}};
       },
       "IntxWeightOnlyConfig takes no granularity PerTensor"},
      {"torchao_no_names", Intx, Loader::kTransformers,
       [](auto& m) { m.metadata.erase("tensor_names"); }, "has no list \"tensor_names\""},
      {"torchao_incomplete_names", Intx, Loader::kTransformers,
       [](auto& m) { m.metadata["tensor_names"] = R"(["model.norm.weight"])"; },
       "its \"tensor_names\" does not list every parameter of the model"},
      {"torchao_missing_entry", Intx, Loader::kTransformers,
       [](auto& m) { m.metadata.erase("model.norm.weight"); }, "has no entry for it"},
      {"torchao_no_zero_points", Intx, Loader::kTransformers,
       [](auto& m) { EraseSketch(&m.tensors, std::string(kDown) + "._weight_zero_point"); },
       "tensor _weight_zero_point (the zero points) is missing"},
      {"torchao_scale_shape", Intx, Loader::kTransformers,
       [](auto& m) { m.tensor(std::string(kDown) + "._weight_scale").shape = {256, 2}; },
       "_weight_scale: has shape [256, 2]"},
      {"torchao_bad_width", Intx, Loader::kTransformers,
       [](auto& m) {
         std::string& entry = m.metadata[std::string(kDown) + ".weight"];
         entry.replace(entry.find("int4"), 4, "int9");
       },
       "its target_dtype \"int9\" is none of int1 to int8"},
      {"torchao_intx_vllm", Intx, Loader::kVllm, [](auto&) {},
       "vLLM can't copy torchao's IntxUnpackedToInt8Tensor"},
      {"torchao_sglang", Int8, Loader::kSglang, [](auto&) {},
       "SGLang has no quant_method torchao"},
      {"torchao_plain_vllm", Int8, Loader::kVllm,
       [](auto& m) {
         Unpack(m, kDown);
         m.metadata[std::string(kDown) + ".weight"] = R"({"_type": "Tensor"})";
       },
       "is not quantized, and vLLM would quantize it by the config"},

      // llama.cpp.
      {"safetensors_llama_cpp", Packed, Loader::kLlamaCpp, [](auto&) {},
       "llama.cpp reads GGUF files, not safetensors"},
  };
  return *breaks;
}

INSTANTIATE_TEST_SUITE_P(Rules, BreakTest, ::testing::ValuesIn(Breaks()),
                         [](const auto& test) { return std::string(test.param.name); });

// --- Shapes, which need another model -----------------------------------------------------------

// Heads of 16: 96 rows of fused q, k and v, and 96 columns.
QuantizedModel Narrow() {
  QuantizedModel model = CompressedTensorsModel(4, 32);
  const Json changes = {
      {"hidden_size", 96}, {"num_attention_heads", 6}, {"num_key_value_heads", 6}};
  Json config = testing::LlamaConfig();
  config.update(changes);
  model.config.update(changes);
  model.tensors.clear();
  for (const TableTensor& row : BuildTensorTable(testing::TinyModelConfig(config))) {
    if (row.role != TensorRole::kLinearWeight) {
      model.tensors.push_back({row.name, DType::kF16, row.shape});
      continue;
    }
    for (TensorSketch& part : PackedParts(row.module, row.shape[0], row.shape[1], 4, 32, true)) {
      model.tensors.push_back(std::move(part));
    }
  }
  return model;
}

TEST_F(LoaderRulesTest, MarlinTilesAreOfFusedLayers) {
  const LoaderVerdict vllm = Judge(Narrow(), Loader::kVllm);
  EXPECT_EQ(vllm.verdict, Verdict::kLoadsWithRemark);
  EXPECT_THAT(vllm.remarks,
              ::testing::Contains(HasSubstr("out_features 288 and in_features 96 (fused layers")));
  const LoaderVerdict sglang = Judge(Narrow(), Loader::kSglang);
  EXPECT_EQ(sglang.verdict, Verdict::kDoesNotLoad);
  EXPECT_THAT(sglang.problems,
              ::testing::Contains(HasSubstr("which the Marlin kernels of SGLang ask for")));
  EXPECT_EQ(Judge(Narrow(), Loader::kTransformers).verdict, Verdict::kLoads);
}

// Two blocks of routed experts, their layers as `method` has them.
QuantizedModel Experts(const QuantizedModel& method, const Json& changes) {
  Json config = {{"num_experts_per_tok", 2}, {"tie_word_embeddings", false}};
  config.update(changes);
  const bool packed = method.config["quantization_config"].contains("config_groups");
  QuantizedModel model = testing::WithLayers(
      [&](const std::string& module, int64_t n, int64_t k) {
        return packed ? PackedParts(module, n, k, 4, 128, true)
                      : testing::GptqParts(module, n, k, 4, 128);
      },
      config);
  model.quantization() = method.config["quantization_config"];
  return model;
}

TEST_F(LoaderRulesTest, RoutedExpertsLoadWhereALibraryPutsThemBack) {
  const Json qwen = {{"model_type", "qwen3_moe"},
                     {"architectures", {"Qwen3MoeForCausalLM"}},
                     {"num_experts", 4},
                     {"norm_topk_prob", true},
                     {"head_dim", 64},
                     {"moe_intermediate_size", 128}};
  const Json mixtral = {{"model_type", "mixtral"},
                        {"architectures", {"MixtralForCausalLM"}},
                        {"num_local_experts", 4}};
  const Loader loader = Loader::kTransformers;
  EXPECT_THAT(Judge(Experts(Packed(), qwen), loader).problems, IsEmpty());
  EXPECT_THAT(Judge(Experts(Packed(), mixtral), loader).problems, IsEmpty());
  EXPECT_THAT(Judge(Experts(AutoRoundModel(), qwen), loader).problems, IsEmpty());
  EXPECT_THAT(Judge(Experts(AutoRoundModel(), mixtral), loader).problems,
              ElementsAre(HasSubstr("auto-round looks for experts named gate_proj")));
  EXPECT_THAT(Judge(Experts(Gptq(), qwen), loader).problems,
              ElementsAre(HasSubstr("open them by GPTQModel.load")));
  EXPECT_THAT(Judge(Experts(Gptq(), mixtral), loader).problems,
              ElementsAre(HasSubstr("without an error; write compressed-tensors")));
}

TEST_F(LoaderRulesTest, CodesFillWords) {
  QuantizedModel model = Narrow();
  model.config["intermediate_size"] = 516;  // down_proj: 516 columns of 4 bits are 64.5 words
  const LoaderVerdict vllm = [&] {
    Json config = testing::LlamaConfig();
    config.update({{"hidden_size", 96},
                   {"num_attention_heads", 6},
                   {"num_key_value_heads", 6},
                   {"intermediate_size", 516}});
    model.tensors.clear();
    for (const TableTensor& row : BuildTensorTable(testing::TinyModelConfig(config))) {
      if (row.role != TensorRole::kLinearWeight) {
        model.tensors.push_back({row.name, DType::kF16, row.shape});
        continue;
      }
      for (TensorSketch& part : PackedParts(row.module, row.shape[0], row.shape[1], 4, -1, true)) {
        model.tensors.push_back(std::move(part));
      }
    }
    model.quantization()["config_groups"]["group_0"] = PackedGroup(4, -1, true);
    return Judge(model, Loader::kVllm);
  }();
  EXPECT_THAT(vllm.problems,
              ElementsAre(AllOf(HasSubstr("model.layers.0.mlp.down_proj"),
                                HasSubstr("in_features 516 of 4 bits do not fill"))));
}

// --- Other cases --------------------------------------------------------------------------------

TEST_F(LoaderRulesTest, MixedSchemesBetweenFusedSetsLoad) {
  QuantizedModel model = Packed();
  for (const char* part : {"q_proj", "k_proj", "v_proj"}) {
    Repack(model, std::string("model.layers.0.self_attn.") + part, 8);
  }
  Json targets = Json::array();
  for (const char* part : {"q_proj", "k_proj", "v_proj"}) {
    targets.push_back(std::string("model.layers.0.self_attn.") + part);
  }
  model.quantization()["config_groups"]["group_1"]["targets"] = targets;
  EXPECT_EQ(Judge(model, Loader::kVllm).verdict, Verdict::kLoads);
  EXPECT_EQ(Judge(model, Loader::kTransformers).verdict, Verdict::kLoads);
}

TEST_F(LoaderRulesTest, PlainFusedSetsNeedTheFusedNameInSglangAlone) {
  QuantizedModel model = Gptq();
  for (const char* part : {"gate_proj", "up_proj"}) {
    Unpack(model, std::string("model.layers.1.mlp.") + part);
  }
  model.quantization()["dynamic"][R"(-:^model\.layers\.1\.mlp\.(gate|up)_proj$)"] = Json::object();
  EXPECT_EQ(Judge(model, Loader::kVllm).verdict, Verdict::kLoads);
  EXPECT_THAT(Judge(model, Loader::kSglang).problems,
              ElementsAre(HasSubstr("SGLang matches \"dynamic\" against this fused name")));
  model.quantization()["dynamic"][R"(-:^model\.layers\.1\.mlp\.gate_up_proj$)"] = Json::object();
  EXPECT_EQ(Judge(model, Loader::kSglang).verdict, Verdict::kLoads);
}

TEST_F(LoaderRulesTest, MethodsOfOthersAreNotChecked) {
  for (const char* method : {"bitsandbytes", "fp8"}) {
    QuantizedModel model = PlainModel();
    model.quantization() = {{"quant_method", method}};
    const LoaderVerdict verdict = Judge(model, Loader::kVllm);
    EXPECT_EQ(verdict.verdict, Verdict::kNotChecked) << method;
    EXPECT_THAT(verdict.remarks, ElementsAre(HasSubstr("not checked")));
  }
}

TEST_F(LoaderRulesTest, NeedsAreNamed) {
  EXPECT_EQ(Judge(Gptq(), Loader::kTransformers).needs, "gptqmodel >= 1.4.3 and optimum >= 1.24");
  EXPECT_EQ(Judge(Intx(), Loader::kTransformers).needs, "torchao >= 0.15");
  EXPECT_EQ(Judge(PlainModel(), Loader::kTransformers).needs, "");
}

TEST_F(LoaderRulesTest, UnusableFoldersAreErrors) {
  EXPECT_THAT(CheckFolder(Path("absent")),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("does not exist")));
  EXPECT_THAT(CheckFolder(folder_), StatusIs(absl::StatusCode::kInvalidArgument,
                                             HasSubstr("neither config.json nor a .gguf file")));
  Write("config.json", "[1]");
  EXPECT_THAT(CheckFolder(folder_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no JSON object")));
  Write("a.gguf", "");
  Write("b.gguf", "");
  EXPECT_THAT(CheckFolder(folder_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("several .gguf files")));
}

TEST_F(LoaderRulesTest, VerdictsAreJson) {
  WriteQuantizedModel(folder_, Gptq());
  const auto check = CheckFolder(folder_);
  ASSERT_THAT(check, IsOk());
  const Json json = FolderCheckToJson(*check);
  EXPECT_EQ(json["method"], "gptq");
  EXPECT_EQ(json["quantized_layers"], 14);
  ASSERT_EQ(json["loaders"].size(), 4);
  EXPECT_EQ(json["loaders"][1]["loader"], "vllm");
  EXPECT_EQ(json["loaders"][1]["verdict"], "loads");
  EXPECT_EQ(json["loaders"][3]["verdict"], "does_not_load");
}

TEST(LoaderTest, NamesParse) {
  for (const char* name : kLoaderNames) {
    const auto loader = ParseLoader(name);
    ASSERT_THAT(loader, IsOk());
    EXPECT_EQ(std::string(LoaderName(*loader)), name);
  }
  EXPECT_THAT(ParseLoader("mlx"), StatusIs(absl::StatusCode::kInvalidArgument,
                                           HasSubstr("transformers, vllm, sglang, llama.cpp")));
}

}  // namespace
}  // namespace ptq
