// The compressed-tensors format, pack-quantized: what vLLM, SGLang and transformers read, and what
// llm-compressor writes. Symmetric and asymmetric, by groups and by channels, 2 to 8 bits.
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/bit_packing.h"
#include "formats/headers/quote.h"
#include "formats/module_pattern.h"
#include "formats/packed_check.h"
#include "formats/safetensors_format.h"

namespace ptq {
namespace {

constexpr char kName[] = "compressed-tensors";
constexpr char kPacked[] = "pack-quantized";

class PackQuantized final : public WeightPacking {
 public:
  std::vector<std::string> Names(const PlannedModule& module) const override {
    std::vector<std::string> names = {module.module + ".weight_packed",
                                      module.module + ".weight_scale",
                                      module.module + ".weight_shape"};
    if (!module.scheme.symmetric) names.push_back(module.module + ".weight_zero_point");
    return names;
  }

  std::string ScaleName(const std::string& module) const override {
    return module + ".weight_scale";
  }

  absl::StatusOr<std::vector<LazyTensor>> Pack(const PlannedModule& module,
                                               const AffineQuantizedTensor& record) const override {
    const int bits = record.bits;
    const int middle = 1 << (bits - 1);
    std::vector<NamedTensor> small = {
        {module.module + ".weight_scale", RowScales(record)},
        {module.module + ".weight_shape",
         at::tensor({module.out_features, module.in_features}, at::kLong)}};
    if (!module.scheme.symmetric) {
      PTQ_ASSIGN_OR_RETURN(const at::Tensor zeros, ByteZeroPoints(module, record, 0, kName));
      small.push_back({module.module + ".weight_zero_point",
                       PackRowsTransposed(zeros.t().contiguous(), bits, middle)});
    }
    std::vector<LazyTensor> tensors = ToLazy(std::move(small));
    const at::Tensor codes = record.int_data;
    tensors.push_back(MakeLazy(module.module + ".weight_packed", at::kInt,
                               {module.out_features, PackedWords(module.in_features, bits)},
                               [codes, bits, middle] { return PackRows(codes, bits, middle); }));
    return tensors;
  }

  absl::Status Check(const PlannedModule& module, const RecordView& record,
                     RecordCheck& file) const override {
    return CheckCompressedTensors(record, module.scheme.symmetric, file);
  }

  absl::StatusOr<AffineQuantizedTensor> Unpack(const PlannedModule& module,
                                               const CheckpointReader& reader) const override {
    const int bits = module.scheme.bits;
    const int middle = 1 << (bits - 1);
    const int64_t groups = module.in_features / GroupSizeOf(module);
    PTQ_ASSIGN_OR_RETURN(const at::Tensor shape,
                         ReadAs(reader, module.module + ".weight_shape", at::kLong, {2}));
    if (!shape.equal(at::tensor({module.out_features, module.in_features}, at::kLong))) {
      return absl::DataLossError(
          absl::StrCat("tensor ", module.module,
                       ".weight_shape: not the shape that config.json gives the layer"));
    }
    PTQ_ASSIGN_OR_RETURN(const at::Tensor packed,
                         ReadAs(reader, module.module + ".weight_packed", at::kInt,
                                {module.out_features, PackedWords(module.in_features, bits)}));
    PTQ_ASSIGN_OR_RETURN(const auto scale_type, ToScalarType(module.scale_dtype));
    PTQ_ASSIGN_OR_RETURN(at::Tensor scales, ReadAs(reader, module.module + ".weight_scale",
                                                   scale_type, {module.out_features, groups}));
    at::Tensor zeros = scales.new_zeros(scales.sizes(), at::kInt);
    if (!module.scheme.symmetric) {
      PTQ_ASSIGN_OR_RETURN(const at::Tensor words,
                           ReadAs(reader, module.module + ".weight_zero_point", at::kInt,
                                  {PackedWords(module.out_features, bits), groups}));
      zeros = UnpackRowsTransposed(words, module.out_features, bits, middle)
                  .t()
                  .contiguous()
                  .to(at::kInt);
    }
    return MakeRecord(module, UnpackRows(packed, module.in_features, bits, middle),
                      std::move(scales), std::move(zeros));
  }
};

Json SchemeJson(const QuantizationScheme& scheme) {
  const bool grouped = scheme.group_size > 0;
  return {{"num_bits", scheme.bits},
          {"type", "int"},
          {"symmetric", scheme.symmetric},
          {"strategy", grouped ? "group" : "channel"},
          {"group_size", grouped ? Json(scheme.group_size) : Json(nullptr)},
          {"dynamic", false},
          {"actorder", nullptr},
          {"block_structure", nullptr},
          {"observer", "minmax"},
          {"observer_kwargs", Json::object()}};
}

Json GroupJson(Json targets, Json weights) {
  return {{"targets", std::move(targets)},
          {"weights", std::move(weights)},
          {"input_activations", nullptr},
          {"output_activations", nullptr},
          {"format", kPacked}};
}

// What config.json must say so that loaders don't round the scales again: nothing where the model's
// own dtype holds them.
std::optional<DType> ComputeDType(const ExportPlan& plan) {
  const DType model = CheckpointDType(plan.source);
  for (const PlannedModule& module : plan.modules) {
    if (module.scale_dtype != model && model != DType::kF32) return module.scale_dtype;
  }
  return std::nullopt;
}

absl::Status RefuseKey(const std::string& key, const Json& value, const std::string& why) {
  return absl::FailedPreconditionError(
      absl::StrCat("quantization_config: ", key, " is ", DumpJson(value), ": ", why));
}

bool IsEmpty(const Json& value) {
  return value.is_null() || ((value.is_object() || value.is_array()) && value.empty());
}

// One of config_groups.
struct Group {
  std::vector<std::string> targets;
  QuantizationScheme scheme;
};

absl::StatusOr<Group> ParseGroup(const Json& json, const std::string& outer_format) {
  if (!json.is_object()) return absl::InvalidArgumentError("is no object");
  Group group;
  for (const Json& target : json.value("targets", Json::array())) {
    if (!target.is_string()) return absl::InvalidArgumentError("targets must be strings");
    group.targets.push_back(target.get<std::string>());
  }
  const std::string format = json.contains("format") && json["format"].is_string()
                                 ? json["format"].get<std::string>()
                                 : outer_format;
  if (format != kPacked) return RefuseKey("format", format, "only pack-quantized can be read");
  for (const char* key : {"input_activations", "output_activations"}) {
    const Json value = json.value(key, Json());
    if (!IsEmpty(value)) {
      return RefuseKey(key, value,
                       "records hold weights, and the activations' scheme would be lost");
    }
  }
  const Json weights = json.value("weights", Json());
  if (!weights.is_object()) return absl::InvalidArgumentError("weights is missing");
  PTQ_ASSIGN_OR_RETURN(const std::string type, JsonString(weights, "type", "int"));
  if (type != "int") return RefuseKey("type", type, "records hold integer codes");
  const Json order = weights.value("actorder", Json());
  if (order.is_string() && (order == "group" || order == "dynamic")) {
    return RefuseKey("actorder", order, "no record holds groups in another order of columns");
  }
  PTQ_ASSIGN_OR_RETURN(const int64_t bits, JsonInt(weights, "num_bits"));
  PTQ_ASSIGN_OR_RETURN(group.scheme.symmetric, JsonBool(weights, "symmetric", true));
  PTQ_ASSIGN_OR_RETURN(const std::string strategy, JsonString(weights, "strategy"));
  group.scheme.bits = static_cast<int>(bits);
  if (strategy == "group") {
    PTQ_ASSIGN_OR_RETURN(group.scheme.group_size, JsonInt(weights, "group_size"));
  } else if (strategy == "channel") {
    group.scheme.group_size = QuantizationScheme::kPerChannel;
  } else {
    return RefuseKey("strategy", strategy, "only group and channel can be read");
  }
  return group;
}

class CompressedTensorsFormat final : public SafetensorsFormat {
 public:
  std::string name() const override { return kName; }

 protected:
  std::unique_ptr<WeightPacking> PackingFor(const ExportPlan&) const override {
    return std::make_unique<PackQuantized>();
  }

  FolderConfig ConfigFor(const ExportPlan& plan) const override {
    struct Targets {
      Json weights;
      std::vector<std::string> modules;
    };
    std::vector<Targets> groups;
    for (const PlannedModule& module : plan.modules) {
      Json weights = SchemeJson(module.scheme);
      auto group = std::find_if(groups.begin(), groups.end(),
                                [&](const Targets& known) { return known.weights == weights; });
      if (group == groups.end()) {
        groups.push_back({std::move(weights), {}});
        group = groups.end() - 1;
      }
      group->modules.push_back(module.module);
    }
    if (groups.size() == 1) {
      // vLLM's head is no Linear: it is found by its name alone.
      std::vector<std::string> targets = {"Linear"};
      for (const PlannedModule& module : plan.modules) {
        if (module.place == ModulePlace::kHead) targets.push_back(module.module);
      }
      groups[0].modules = std::move(targets);
    }
    Json config_groups = Json::object();
    for (size_t i = 0; i < groups.size(); ++i) {
      config_groups[absl::StrCat("group_", i)] = GroupJson(groups[i].modules, groups[i].weights);
    }
    Json ignore = PlainHead(plan);
    for (const std::string& module : PlainLinears(plan)) ignore.push_back(module);
    Json config = {{"quant_method", kName},
                   {"version", "0.15.0"},
                   {"format", kPacked},
                   {"quantization_status", "compressed"},
                   {"global_compression_ratio", nullptr},
                   {"kv_cache_scheme", nullptr},
                   {"ignore", std::move(ignore)},
                   {"sparsity_config", Json::object()},
                   {"transform_config", Json::object()},
                   {"config_groups", std::move(config_groups)}};
    return {.quantization = std::move(config), .dtype = ComputeDType(plan), .files = {}};
  }

  class PackedReading final : public Reading {
   public:
    static absl::StatusOr<std::unique_ptr<Reading>> Create(const Json& config) {
      auto reading = std::make_unique<PackedReading>();
      for (const char* key : {"kv_cache_scheme", "transform_config"}) {
        const Json value = config.value(key, Json());
        if (!IsEmpty(value)) return RefuseKey(key, value, "no record holds it");
      }
      const Json sparsity = config.value("sparsity_config", Json());
      if (!IsEmpty(sparsity) && sparsity.value("format", "dense") != "dense") {
        return RefuseKey("sparsity_config", sparsity, "sparse weights can't be read");
      }
      PTQ_ASSIGN_OR_RETURN(const std::string format, JsonString(config, "format", kPacked));
      const Json groups = config.value("config_groups", Json());
      if (!groups.is_object() || groups.empty()) {
        return absl::InvalidArgumentError("quantization_config: config_groups is missing");
      }
      for (const auto& [key, group] : groups.items()) {
        auto parsed = ParseGroup(group, format);
        if (!parsed.ok()) return Annotate(parsed.status(), "config_groups." + key);
        reading->groups_.push_back(*std::move(parsed));
      }
      for (const Json& name : config.value("ignore", Json::array())) {
        if (name.is_string()) reading->ignore_.push_back(name.get<std::string>());
      }
      return reading;
    }

    const WeightPacking& packing() const override { return packing_; }

    absl::StatusOr<std::optional<QuantizationScheme>> SchemeOf(
        const std::string& module) const override {
      for (const std::string& name : ignore_) {
        PTQ_ASSIGN_OR_RETURN(const Match match, MatchOf(name, module));
        if (match != Match::kNone) return std::nullopt;
      }
      // A name counts more than a pattern, and that more than a class.
      const Group* best = nullptr;
      Match how = Match::kNone;
      for (const Group& group : groups_) {
        for (const std::string& target : group.targets) {
          PTQ_ASSIGN_OR_RETURN(const Match match, MatchOf(target, module));
          if (match > how) {
            how = match;
            best = &group;
          }
        }
      }
      if (best == nullptr) return std::nullopt;
      return best->scheme;
    }

   private:
    enum class Match { kNone, kClass, kPattern, kWhole };

    static absl::StatusOr<Match> MatchOf(const std::string& target, const std::string& module) {
      if (target == module) return Match::kWhole;
      if (absl::StartsWith(target, "re:")) {
        PTQ_ASSIGN_OR_RETURN(const bool matches, MatchesBeginning(target.substr(3), module));
        return matches ? Match::kPattern : Match::kNone;
      }
      return target == "Linear" ? Match::kClass : Match::kNone;
    }

    std::vector<Group> groups_;
    std::vector<std::string> ignore_;
    PackQuantized packing_;
  };

  absl::StatusOr<std::unique_ptr<Reading>> Read(const Json& quantization_config,
                                                const CheckpointIndex&) const override {
    return PackedReading::Create(quantization_config);
  }
};

}  // namespace

std::unique_ptr<CheckpointFormat> MakeCompressedTensorsFormat() {
  return std::make_unique<CompressedTensorsFormat>();
}

}  // namespace ptq
