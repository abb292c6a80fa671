// Small quantized Llamas made of headers and zeros, in each layout that a loader's rules know.
#ifndef PTQ_TESTS_FORMATS_HEADERS_LOADER_RULES_QUANTIZED_MODELS_H_
#define PTQ_TESTS_FORMATS_HEADERS_LOADER_RULES_QUANTIZED_MODELS_H_

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "tests/formats/headers/header_testing.h"

namespace ptq::testing {

inline Json LlamaConfig() {
  Json config = TinyConfig();
  config.update({{"hidden_size", 256},
                 {"intermediate_size", 512},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"dtype", "float16"}});
  return config;
}

// What a test changes before the folder is written.
struct QuantizedModel {
  Json config = LlamaConfig();
  std::vector<TensorSketch> tensors;
  std::map<std::string, std::string> metadata;  // beside "format"
  std::map<std::string, std::string> files = {{"tokenizer.json", "{}"}};

  Json& quantization() { return config["quantization_config"]; }
  TensorSketch& tensor(const std::string& name) {
    TensorSketch* found = FindSketch(&tensors, name);
    if (found == nullptr) ADD_FAILURE() << "no tensor " << name;
    return found == nullptr ? tensors.front() : *found;
  }
};

inline void WriteQuantizedModel(const std::string& folder, const QuantizedModel& model) {
  Json header = HeaderOf(model.tensors);
  for (const auto& [key, value] : model.metadata) header["__metadata__"][key] = value;
  const std::string text = DumpJson(header);
  int64_t data_bytes = 0;
  for (const TensorSketch& tensor : model.tensors) data_bytes += tensor.bytes();
  const auto write = [&folder](const std::string& name, const std::string& data) {
    std::ofstream(JoinPath(folder, name), std::ios::binary) << data;
  };
  write("model.safetensors",
        LengthPrefix(text.size()) + text + std::string(static_cast<size_t>(data_bytes), '\0'));
  write("config.json", DumpJson(model.config));
  for (const auto& [name, data] : model.files) write(name, data);
}

// Layers of the blocks become `parts(module, out_features, in_features)`; the rest stays.
inline QuantizedModel WithLayers(
    const std::function<std::vector<TensorSketch>(const std::string&, int64_t, int64_t)>& parts,
    const Json& changes = Json::object()) {
  QuantizedModel model;
  model.config.update(changes);
  for (const TableTensor& row : BuildTensorTable(TinyModelConfig(model.config))) {
    if (row.role != TensorRole::kLinearWeight || row.block < 0) {
      model.tensors.push_back({row.name, DType::kF16, row.shape});
      continue;
    }
    for (TensorSketch& part : parts(row.module, row.shape[0], row.shape[1])) {
      model.tensors.push_back(std::move(part));
    }
  }
  return model;
}

inline QuantizedModel PlainModel() {
  return WithLayers([](const std::string& module, int64_t n, int64_t k) {
    return std::vector<TensorSketch>{{module + ".weight", DType::kF16, {n, k}}};
  });
}

inline std::vector<TensorSketch> PackedParts(const std::string& module, int64_t n, int64_t k,
                                             int bits, int64_t group, bool symmetric) {
  const int64_t groups = group > 0 ? k / group : 1;
  std::vector<TensorSketch> parts = {
      {module + ".weight_packed", DType::kI32, {n, (k * bits + 31) / 32}},
      {module + ".weight_scale", DType::kF16, {n, groups}},
      {module + ".weight_shape", DType::kI64, {2}}};
  if (!symmetric) {
    parts.push_back({module + ".weight_zero_point", DType::kI32, {(n * bits + 31) / 32, groups}});
  }
  return parts;
}

inline Json PackedGroup(int bits, int64_t group, bool symmetric) {
  return {{"targets", {"Linear"}},
          {"weights",
           {{"num_bits", bits},
            {"type", "int"},
            {"symmetric", symmetric},
            {"strategy", group > 0 ? "group" : "channel"},
            {"group_size", group > 0 ? Json(group) : Json(nullptr)}}},
          {"input_activations", nullptr},
          {"output_activations", nullptr}};
}

inline QuantizedModel CompressedTensorsModel(int bits = 4, int64_t group = 128,
                                             bool symmetric = true) {
  QuantizedModel model = WithLayers([&](const std::string& module, int64_t n, int64_t k) {
    return PackedParts(module, n, k, bits, group, symmetric);
  });
  model.quantization() = {{"quant_method", "compressed-tensors"},
                          {"format", "pack-quantized"},
                          {"quantization_status", "compressed"},
                          {"ignore", {"lm_head"}},
                          {"config_groups", {{"group_0", PackedGroup(bits, group, symmetric)}}}};
  return model;
}

inline std::vector<TensorSketch> GptqParts(const std::string& module, int64_t n, int64_t k,
                                           int bits, int64_t group) {
  const int64_t groups = group > 0 ? k / group : 1;
  return {{module + ".qweight", DType::kI32, {k * bits / 32, n}},
          {module + ".qzeros", DType::kI32, {groups, n * bits / 32}},
          {module + ".scales", DType::kF16, {groups, n}},
          {module + ".g_idx", DType::kI32, {k}}};
}

inline QuantizedModel GptqModel(int bits = 4, int64_t group = 128, bool symmetric = true) {
  QuantizedModel model = WithLayers([&](const std::string& module, int64_t n, int64_t k) {
    return GptqParts(module, n, k, bits, group);
  });
  model.quantization() = {{"quant_method", "gptq"}, {"bits", bits},
                          {"group_size", group},    {"sym", symmetric},
                          {"desc_act", false},      {"checkpoint_format", "gptq"},
                          {"damp_percent", 0.01},   {"lm_head", false}};
  return model;
}

inline QuantizedModel AwqModel(int64_t group = 128) {
  QuantizedModel model = WithLayers([&](const std::string& module, int64_t n, int64_t k) {
    return std::vector<TensorSketch>{{module + ".qweight", DType::kI32, {k, n / 8}},
                                     {module + ".qzeros", DType::kI32, {k / group, n / 8}},
                                     {module + ".scales", DType::kF16, {k / group, n}}};
  });
  model.quantization() = {{"quant_method", "awq"}, {"bits", 4},
                          {"group_size", group},   {"zero_point", true},
                          {"version", "gemm"},     {"modules_to_not_convert", {"lm_head"}}};
  return model;
}

inline QuantizedModel AutoRoundModel() {
  QuantizedModel model = GptqModel();
  std::erase_if(model.tensors, [](const TensorSketch& tensor) {
    return tensor.name.find(".g_idx") != std::string::npos;
  });
  model.quantization() = {{"quant_method", "auto-round"},
                          {"packing_format", "auto_round:auto_gptq"},
                          {"bits", 4},
                          {"group_size", 128},
                          {"sym", true},
                          {"data_type", "int"},
                          {"block_name_to_quantize", "model.layers"}};
  return model;
}

inline QuantizedModel TorchaoModel(bool int8 = false) {
  constexpr int64_t kGroup = 128;
  std::map<std::string, std::string> metadata;
  Json names = Json::array();
  QuantizedModel model = WithLayers([&](const std::string& module, int64_t n, int64_t k) {
    const int64_t group = int8 ? k : kGroup;
    Json entry = {{"_type", int8 ? "Int8Tensor" : "IntxUnpackedToInt8Tensor"},
                  {"_data", {{"block_size", {1, group}}}},
                  {"_tensor_data_names", {"qdata", "scale", "zero_point"}}};
    if (!int8) entry["_data"]["target_dtype"] = {{"_type", "torch.dtype"}, {"_data", "int4"}};
    metadata[module + ".weight"] = DumpJson(entry);
    names.push_back(module + ".weight");
    return std::vector<TensorSketch>{
        {module + "._weight_qdata", DType::kI8, {n, k}},
        {module + "._weight_scale", int8 ? DType::kF32 : DType::kF16, {n, k / group}},
        {module + "._weight_zero_point", DType::kI8, {n, k / group}}};
  });
  for (const TensorSketch& tensor : model.tensors) {
    if (tensor.name.find("._weight_") != std::string::npos) continue;
    metadata[tensor.name] = R"({"_type": "Tensor"})";
    names.push_back(tensor.name);
  }
  metadata["tensor_names"] = DumpJson(names);
  model.metadata = std::move(metadata);
  model.quantization() = {{"quant_method", "torchao"},
                          {"quant_type",
                           {{"default",
                             {{"_type", int8 ? "Int8WeightOnlyConfig" : "IntxWeightOnlyConfig"},
                              {"_data", Json::object()}}}}},
                          {"modules_to_not_convert", {"lm_head"}}};
  return model;
}

}  // namespace ptq::testing

#endif  // PTQ_TESTS_FORMATS_HEADERS_LOADER_RULES_QUANTIZED_MODELS_H_
