// The strings that torchao and transformers read, literally (torchao 0.18).
#include "formats/torchao_metadata.h"

#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

TEST(TorchaoMetadataTest, WritesTheEncodersStrings) {
  const auto metadata = TorchaoMetadata(
      {{.name = "model.embed_tokens.weight"},
       {"model.layers.0.self_attn.q_proj.weight", true, {.bits = 4, .group_size = 32}, 64, 256},
       {"model.layers.0.self_attn.v_proj.weight", true, {.bits = 8, .group_size = -1}, 64, 256}},
      DType::kBF16, ScaleRule::kFullRange);
  EXPECT_EQ(metadata.at("model.embed_tokens.weight"), R"({"_type": "Tensor"})");
  EXPECT_EQ(metadata.at("model.layers.0.self_attn.q_proj.weight"),
            R"({"_type": "IntxUnpackedToInt8Tensor", "_data": {"target_dtype": )"
            R"({"_type": "torch.dtype", "_data": "int4"}, "block_size": [1, 32], "dtype": )"
            R"({"_type": "torch.dtype", "_data": "bfloat16"}, "activation_quantization": null}, )"
            R"("_tensor_data_names": ["qdata", "scale", "zero_point"]})");
  EXPECT_EQ(metadata.at("model.layers.0.self_attn.v_proj.weight"),
            R"({"_type": "Int8Tensor", "_data": {"act_quant_kwargs": null, "reduce_range": false, )"
            R"("block_size": [1, 256], "dtype": {"_type": "torch.dtype", "_data": "bfloat16"}}, )"
            R"("_tensor_data_names": ["zero_point", "qdata", "scale"]})");
  EXPECT_EQ(metadata.at("tensor_names"),
            R"(["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", )"
            R"("model.layers.0.self_attn.v_proj.weight"])");
  EXPECT_EQ(metadata.at("format"), "pt");
}

TEST(TorchaoMetadataTest, OnlyEightBitSymmetricPerChannelIsInt8Tensor) {
  using enum TorchaoClass;
  EXPECT_EQ(TorchaoClassOf({.bits = 8, .group_size = -1, .symmetric = true}), kInt8);
  EXPECT_EQ(TorchaoClassOf({.bits = 8, .group_size = -1, .symmetric = false}), kIntxUnpackedToInt8);
  EXPECT_EQ(TorchaoClassOf({.bits = 8, .group_size = 0, .symmetric = true}), kIntxUnpackedToInt8);
  EXPECT_EQ(TorchaoClassOf({.bits = 8, .group_size = 32, .symmetric = true}), kIntxUnpackedToInt8);
  EXPECT_EQ(TorchaoClassOf({.bits = 4, .group_size = -1, .symmetric = true}), kIntxUnpackedToInt8);
}

TEST(TorchaoMetadataTest, ReadsItsOwnStrings) {
  const auto metadata =
      TorchaoMetadata({{"a.weight", true, {.bits = 3, .group_size = 0, .symmetric = false}, 6, 10}},
                      DType::kF16, ScaleRule::kFullRange);
  PTQ_ASSERT_OK_AND_ASSIGN(const auto tensor, ParseTorchaoTensor(metadata.at("a.weight")));
  EXPECT_EQ(tensor.tensor_class, TorchaoClass::kIntxUnpackedToInt8);
  EXPECT_EQ(tensor.bits, 3);
  EXPECT_EQ(tensor.block_size, (std::array<int64_t, 2>{6, 10}));
  EXPECT_EQ(tensor.dtype, DType::kF16);
}

TEST(TorchaoMetadataTest, RefusesWhatItDoesNotKnow) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(ParseTorchaoTensor("{"), StatusIs(kInvalid, HasSubstr("syntax")));
  EXPECT_THAT(ParseTorchaoTensor(R"({"_type": "NF4Tensor"})"),
              StatusIs(kInvalid, HasSubstr("NF4Tensor")));
  EXPECT_THAT(ParseTorchaoTensor(R"({"_type": "Int8Tensor", "_data": {"dtype": 3}})"),
              StatusIs(kInvalid, HasSubstr("dtype")));
}

TEST(TorchaoQuantizationConfigTest, GroupsOfFourBits) {
  EXPECT_EQ(
      DumpJson(TorchaoQuantizationConfig({.bits = 4, .group_size = 32},
                                         {"lm_head", "model.layers.0.mlp.up_proj"}, false)),
      R"({"quant_method":"torchao","quant_type":{"default":{"_type":"IntxWeightOnlyConfig",)"
      R"("_version":2,"_data":{"weight_dtype":{"_type":"torch.dtype","_data":"int4"},)"
      R"("granularity":{"_type":"PerGroup","_version":1,"_data":{"group_size":32}},)"
      R"("mapping_type":{"_type":"MappingType","_data":"SYMMETRIC"},"scale_dtype":null,)"
      R"("intx_packing_format":{"_type":"IntxPackingFormat","_data":"UNPACKED_TO_INT8"},)"
      R"("intx_choose_qparams_algorithm":{"_type":"IntxChooseQParamsAlgorithm","_data":"AFFINE"}}}},)"
      R"("modules_to_not_convert":["lm_head","model.layers.0.mlp.up_proj"],)"
      R"("include_input_output_embeddings":false,"untie_embedding_weights":false})");
}

TEST(TorchaoQuantizationConfigTest, ChannelsAndTensorsAreAnAxis) {
  for (const int64_t group_size :
       {QuantizationScheme::kPerChannel, QuantizationScheme::kPerTensor}) {
    const Json config = TorchaoQuantizationConfig(
        {.bits = 5, .group_size = group_size, .symmetric = false}, {}, false);
    const Json& data = config["quant_type"]["default"]["_data"];
    EXPECT_EQ(DumpJson(data["granularity"]),
              R"({"_type":"PerAxis","_version":1,"_data":{"axis":0}})");
    EXPECT_EQ(DumpJson(data["mapping_type"]), R"({"_type":"MappingType","_data":"ASYMMETRIC"})");
  }
}

TEST(TorchaoQuantizationConfigTest, EightBitChannels) {
  const Json config = TorchaoQuantizationConfig({.bits = 8, .group_size = -1}, {}, true);
  EXPECT_EQ(DumpJson(config["quant_type"]["default"]),
            R"({"_type":"Int8WeightOnlyConfig","_version":2,"_data":{"group_size":null,)"
            R"("granularity":{"_type":"PerRow","_version":1,"_data":{"dim":-1}},)"
            R"("set_inductor_config":true}})");
}

TEST(DumpJsonLikePythonTest, SpacesAndEscapes) {
  const Json value = {{"a", {1, 2.5, true, nullptr}}, {"b", Json::object()}, {"c", "\u00e9\"\n"}};
  EXPECT_EQ(DumpJsonLikePython(value),
            R"({"a": [1, 2.5, true, null], "b": {}, "c": "\u00e9\"\n"})");
}

}  // namespace
}  // namespace ptq
