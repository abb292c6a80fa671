#include "formats/torchao_metadata.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace ptq {
namespace {

constexpr char kIntxClass[] = "IntxUnpackedToInt8Tensor";
constexpr char kInt8Class[] = "Int8Tensor";
constexpr char kKQuantClass[] = "GgufKQuantTensor";

// torch's name of a dtype that weights decode to.
const char* TorchName(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return "bfloat16";
    case DType::kF16:
      return "float16";
    default:
      return "float32";
  }
}

std::optional<DType> FromTorchName(const std::string& name) {
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    if (name == TorchName(dtype)) return dtype;
  }
  return std::nullopt;
}

// torchao's tagged form of a value: {"_type": ..., "_data": ...}, with a version for config
// classes.
Json Tagged(const std::string& type, Json data) {
  Json json = Json::object();
  json["_type"] = type;
  json["_data"] = std::move(data);
  return json;
}
Json Versioned(const std::string& type, int version, Json data) {
  Json json = Json::object();
  json["_type"] = type;
  json["_version"] = version;
  json["_data"] = std::move(data);
  return json;
}
Json TorchDtype(const std::string& name) { return Tagged("torch.dtype", name); }

Json BlockSize(const TorchaoParameter& parameter) {
  switch (parameter.scheme.group_size) {
    case QuantizationScheme::kPerTensor:
      return {parameter.out_features, parameter.in_features};
    case QuantizationScheme::kPerChannel:
      return {1, parameter.in_features};
    default:
      return {1, parameter.scheme.group_size};
  }
}

// Keys in the order of torchao's encoder: optional attributes and tensors before the required ones.
Json QuantizedEntry(const TorchaoParameter& parameter, DType dtype) {
  if (parameter.scheme.k_quant != KQuant::kNone) {
    Json data = Json::object();
    data["type"] = KQuantName(parameter.scheme.k_quant);
    data["block_size"] = BlockSize(parameter);
    data["dtype"] = TorchDtype(TorchName(dtype));
    return Tagged(kKQuantClass, std::move(data));
  }
  const bool int8 = TorchaoClassOf(parameter.scheme) == TorchaoClass::kInt8;
  Json data = Json::object();
  if (int8) {
    data["act_quant_kwargs"] = nullptr;
    data["reduce_range"] = false;
    data["block_size"] = BlockSize(parameter);
    data["dtype"] = TorchDtype(TorchName(dtype));
  } else {
    data["target_dtype"] = TorchDtype(absl::StrCat("int", parameter.scheme.bits));
    data["block_size"] = BlockSize(parameter);
    data["dtype"] = TorchDtype(TorchName(dtype));
    data["activation_quantization"] = nullptr;
  }
  Json entry = Tagged(int8 ? kInt8Class : kIntxClass, std::move(data));
  entry["_tensor_data_names"] =
      int8 ? Json({"zero_point", "qdata", "scale"}) : Json({"qdata", "scale", "zero_point"});
  return entry;
}

Json Granularity(int64_t group_size) {
  if (group_size > 0) return Versioned("PerGroup", 1, {{"group_size", group_size}});
  // One scale a weight has no loadable spelling here (PerTensor asserts in torchao); the tensors'
  // own block sizes decide when a stored checkpoint is loaded.
  return Versioned("PerAxis", 1, {{"axis", 0}});
}

}  // namespace

TorchaoClass TorchaoClassOf(const QuantizationScheme& scheme) {
  if (scheme.k_quant != KQuant::kNone) return TorchaoClass::kKQuant;
  const bool int8 =
      scheme.bits == 8 && scheme.symmetric && scheme.group_size == QuantizationScheme::kPerChannel;
  return int8 ? TorchaoClass::kInt8 : TorchaoClass::kIntxUnpackedToInt8;
}

std::string TorchaoTensorName(const std::string& module, const std::string& data) {
  return absl::StrCat(module, "._weight_", data);
}

std::map<std::string, std::string> TorchaoMetadata(const std::vector<TorchaoParameter>& parameters,
                                                   DType dtype, ScaleRule scale_rule) {
  std::map<std::string, std::string> metadata;
  Json names = Json::array();
  for (const TorchaoParameter& parameter : parameters) {
    names.push_back(parameter.name);
    const Json entry = parameter.quantized ? QuantizedEntry(parameter, dtype)
                                           : Json::object({{"_type", "Tensor"}});
    metadata[parameter.name] = DumpJsonLikePython(entry);
  }
  metadata["tensor_names"] = DumpJsonLikePython(names);
  metadata["format"] = "pt";
  // transformers takes every key with a dot for a parameter, so ours has none.
  const Json own = {{"scale_rule", scale_rule == ScaleRule::kTorchao ? "torchao" : "full-range"},
                    {"codes", "signed, -2^(bits-1) .. 2^(bits-1)-1"}};
  metadata["ptqd"] = DumpJsonLikePython(own);
  return metadata;
}

absl::StatusOr<TorchaoTensorDescription> ParseTorchaoTensor(const std::string& text) {
  PTQ_ASSIGN_OR_RETURN(const Json entry, ParseJson(text));
  const auto wrong = [](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat("torchao metadata: ", what));
  };
  if (!entry.is_object()) return wrong("not an object");
  PTQ_ASSIGN_OR_RETURN(const std::string type, JsonString(entry, "_type"));
  TorchaoTensorDescription description;
  if (type == kInt8Class) {
    description.tensor_class = TorchaoClass::kInt8;
  } else if (type == kKQuantClass) {
    description.tensor_class = TorchaoClass::kKQuant;
  } else if (type != kIntxClass) {
    return wrong(absl::StrCat("unknown class ", type));
  }
  const auto data = entry.find("_data");
  if (data == entry.end() || !data->is_object()) return wrong("_data is missing");
  const auto dtype_name = [&](const std::string& field) -> absl::StatusOr<std::string> {
    const auto value = data->find(field);
    if (value == data->end() || !value->is_object()) return wrong(field + " is missing");
    return JsonString(*value, "_data");
  };

  description.bits = 8;
  if (description.tensor_class == TorchaoClass::kIntxUnpackedToInt8) {
    PTQ_ASSIGN_OR_RETURN(const std::string target, dtype_name("target_dtype"));
    if (target.size() != 4 || target.compare(0, 3, "int") != 0 || target[3] < '1' ||
        target[3] > '8') {
      return wrong(absl::StrCat("target_dtype ", target));
    }
    description.bits = target[3] - '0';
  }
  if (description.tensor_class == TorchaoClass::kKQuant) {
    PTQ_ASSIGN_OR_RETURN(const std::string name, JsonString(*data, "type"));
    const auto known = std::find(kKQuantNames.begin(), kKQuantNames.end(), name);
    if (known == kKQuantNames.end()) return wrong(absl::StrCat("type ", name));
    description.k_quant = static_cast<KQuant>(known - kKQuantNames.begin() + 1);
    description.bits = TraitsOf(description.k_quant).bits;
  }
  PTQ_ASSIGN_OR_RETURN(const std::string dtype, dtype_name("dtype"));
  const std::optional<DType> parsed = FromTorchName(dtype);
  if (!parsed) return wrong(absl::StrCat("dtype ", dtype));
  description.dtype = *parsed;

  const auto block_size = data->find("block_size");
  if (block_size == data->end() || !block_size->is_array() || block_size->size() != 2) {
    return wrong("block_size is not a list of two");
  }
  for (size_t i = 0; i < 2; ++i) {
    const Json& extent = (*block_size)[i];
    if (!extent.is_number_integer() || extent.get<int64_t>() < 1) return wrong("block_size");
    description.block_size[i] = extent.get<int64_t>();
  }
  return description;
}

Json TorchaoQuantizationConfig(const QuantizationScheme& default_scheme,
                               const std::vector<std::string>& skipped, bool embedding) {
  Json config;
  if (TorchaoClassOf(default_scheme) == TorchaoClass::kInt8) {
    config = Versioned("Int8WeightOnlyConfig", 2,
                       {{"group_size", nullptr},
                        {"granularity", Versioned("PerRow", 1, {{"dim", -1}})},
                        {"set_inductor_config", true}});
  } else {
    config = Versioned(
        "IntxWeightOnlyConfig", 2,
        {{"weight_dtype", TorchDtype(absl::StrCat("int", default_scheme.bits))},
         {"granularity", Granularity(default_scheme.group_size)},
         {"mapping_type",
          Tagged("MappingType", default_scheme.symmetric ? "SYMMETRIC" : "ASYMMETRIC")},
         {"scale_dtype", nullptr},
         {"intx_packing_format", Tagged("IntxPackingFormat", "UNPACKED_TO_INT8")},
         {"intx_choose_qparams_algorithm", Tagged("IntxChooseQParamsAlgorithm", "AFFINE")}});
  }
  Json result = Json::object();
  result["quant_method"] = "torchao";
  result["quant_type"] = Json::object({{"default", std::move(config)}});
  result["modules_to_not_convert"] = skipped;
  result["include_input_output_embeddings"] = embedding;
  result["untie_embedding_weights"] = false;
  return result;
}

std::string DumpJsonLikePython(const Json& value) {
  std::string out;
  if (value.is_object()) {
    out = "{";
    for (const auto& [key, member] : value.items()) {
      absl::StrAppend(&out, out.size() > 1 ? ", " : "", DumpJsonLikePython(Json(key)), ": ",
                      DumpJsonLikePython(member));
    }
    return out + "}";
  }
  if (value.is_array()) {
    out = "[";
    for (const Json& element : value) {
      absl::StrAppend(&out, out.size() > 1 ? ", " : "", DumpJsonLikePython(element));
    }
    return out + "]";
  }
  return value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
}

}  // namespace ptq
