// The formats library from the command line, for the Python tests beside it.
//
//   format_tool export SPEC.json    quantizes a checkpoint roughly and writes it in several formats
//   format_tool tokens calibration|evaluation DATA MODEL SAMPLES LENGTH OUT.safetensors
//
// SPEC: {"model": folder, "output": folder, "formats": [name], "default": scheme, "modules": {name:
// scheme or null to skip}}; the embedding and the head are quantized where they are named. A scheme
// is {"bits", "group_size", "symmetric", "torchao"}. The affine format is written in any case, as a
// job writes it; the others are written from it.
#include <ATen/ATen.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "algorithms/affine/affine_primitives.h"
#include "common/file.h"
#include "common/json.h"
#include "common/status_macros.h"
#include "common/torch_status.h"
#include "formats/checkpoint_format.h"
#include "formats/headers/tensor_table.h"
#include "formats/record_folder.h"
#include "formats/safetensors_writer.h"
#include "formats/token_dataset.h"

namespace ptq {
namespace {

absl::StatusOr<QuantizationScheme> ReadScheme(const Json& json) {
  QuantizationScheme scheme;
  PTQ_ASSIGN_OR_RETURN(const int64_t bits, JsonInt(json, "bits"));
  scheme.bits = static_cast<int>(bits);
  PTQ_ASSIGN_OR_RETURN(scheme.group_size, JsonInt(json, "group_size"));
  PTQ_ASSIGN_OR_RETURN(scheme.symmetric, JsonBool(json, "symmetric", true));
  PTQ_ASSIGN_OR_RETURN(const bool torchao, JsonBool(json, "torchao", false));
  if (torchao) scheme.scale_rule = ScaleRule::kTorchao;
  return scheme;
}

// torchao's parameters, with a random sign for each symmetric scale: writers must keep it.
AffineQuantizedTensor Quantize(const at::Tensor& weight, const QuantizationScheme& scheme) {
  const at::Tensor values = weight.to(at::kFloat);
  AffineQuantizedTensor record;
  record.bits = scheme.bits;
  record.quant_min = scheme.quant_min();
  record.quant_max = scheme.quant_max();
  record.mapping_type = scheme.symmetric ? MappingType::kSymmetric : MappingType::kAsymmetric;
  record.block_size = BlockSizeOf(scheme, values.size(0), values.size(1));
  record.original_dtype = weight.scalar_type();
  ChooseQParamsOptions options;
  options.mapping_type = record.mapping_type;
  options.quant_min = record.quant_min;
  options.quant_max = record.quant_max;
  options.eps = 1e-5;
  const QParams chosen = ChooseQParamsAffine(values, record.block_size, options);
  at::Tensor scale = chosen.scale;
  if (scheme.symmetric && scheme.scale_rule == ScaleRule::kFullRange) {
    scale = scale * at::randint(0, 2, scale.sizes()).mul(2).sub(1);
  }
  record.scale =
      scale.to(scheme.scale_rule == ScaleRule::kTorchao ? record.original_dtype : at::kHalf);
  record.zero_point = chosen.zero_point.to(at::kInt);
  record.int_data =
      QuantizeAffine(values, record.block_size, {record.scale.to(at::kFloat), record.zero_point},
                     record.quant_min, record.quant_max);
  return record;
}

class Records final : public QuantizedCheckpoint {
 public:
  Records(const RecordFolder& records, const CheckpointReader& plain)
      : records_(records), plain_(plain) {}
  const ExportPlan& plan() const override { return records_.plan(); }
  const CheckpointReader& plain() const override { return plain_; }
  absl::StatusOr<std::vector<QuantizedModule>> ReadBlock(int64_t block) const override {
    return records_.ReadBlock(block);
  }

 private:
  const RecordFolder& records_;
  const CheckpointReader& plain_;
};

absl::Status Export(const std::string& spec_path) {
  at::manual_seed(11);
  PTQ_ASSIGN_OR_RETURN(const std::string text, ReadFile(spec_path));
  PTQ_ASSIGN_OR_RETURN(const Json spec, ParseJson(text));
  PTQ_ASSIGN_OR_RETURN(auto source, InspectCheckpoint(spec["model"].get<std::string>()));
  PTQ_ASSIGN_OR_RETURN(const auto reader, SafetensorsCheckpointReader::Open(source.index));
  ExportPlan plan;
  PTQ_ASSIGN_OR_RETURN(plan.default_scheme, ReadScheme(spec["default"]));
  const int64_t block_count = source.config.num_hidden_layers;
  std::map<int64_t, std::vector<TableTensor>> blocks;
  for (int64_t block = 0; block < block_count; ++block) blocks[block] = {};
  for (const TableTensor& tensor : BuildTensorTable(source.config)) {
    const auto place = PlaceOf(tensor, source.config.tie_word_embeddings);
    const auto own = spec["modules"].find(tensor.module);
    const bool named = own != spec["modules"].end();
    if (!place || (*place != ModulePlace::kBlock && !named)) continue;
    QuantizationScheme scheme = plan.default_scheme;
    if (named) {
      if (own->is_null()) {
        plan.skipped.push_back(tensor.module);
        continue;
      }
      PTQ_ASSIGN_OR_RETURN(scheme, ReadScheme(*own));
    }
    const DType original = source.index.Find(tensor.name)->info.dtype;
    plan.modules.push_back({tensor.module, tensor.shape[0], tensor.shape[1], scheme, original,
                            ScaleDTypeOf(scheme.scale_rule, original), false, *place});
    blocks[BlockOf(tensor, block_count)].push_back(tensor);
  }
  plan.source = std::move(source);

  const std::string output = spec["output"].get<std::string>();
  const CancellationToken never;
  PTQ_RETURN_IF_ERROR(MakeDirectories(output + "/affine"));
  PTQ_ASSIGN_OR_RETURN(const auto records, RecordFolder::Create(plan, output + "/affine",
                                                                RecordFolder::Kind::kAffineShards));
  size_t next = 0;
  for (const auto& [block, weights] : blocks) {
    std::vector<QuantizedModule> modules;
    for (const TableTensor& tensor : weights) {
      PTQ_ASSIGN_OR_RETURN(at::Tensor weight, reader->Read(tensor.name));
      if (tensor.transposed) weight = weight.t();
      modules.push_back({tensor.module, Quantize(weight, plan.modules[next++].scheme)});
    }
    PTQ_RETURN_IF_ERROR(records->WriteBlock(block, modules, *reader, never).status());
  }
  PTQ_RETURN_IF_ERROR(records->WriteOuterShards(*reader, never).status());
  PTQ_RETURN_IF_ERROR(records->Finalize());
  const Records checkpoint(*records, *reader);
  for (const Json& name : spec["formats"]) {
    const CheckpointFormat* format = FindCheckpointFormat(name.get<std::string>());
    if (format == nullptr) return absl::NotFoundError("there is no format " + DumpJson(name));
    const std::string folder = output + "/" + format->name();
    PTQ_RETURN_IF_ERROR(MakeDirectories(folder));
    PTQ_RETURN_IF_ERROR(format->Write(checkpoint, folder, never).status());
  }
  return absl::OkStatus();
}

absl::Status Tokens(const std::vector<std::string>& arguments) {
  const std::string& folder = arguments[2];
  PTQ_ASSIGN_OR_RETURN(const std::string text, ReadFile(folder + "/config.json"));
  std::vector<std::string> warnings;
  PTQ_ASSIGN_OR_RETURN(const ModelConfig config, ParseModelConfig(text, &warnings));
  const int64_t samples = std::stoll(arguments[3]);
  const int64_t length = std::stoll(arguments[4]);
  PTQ_ASSIGN_OR_RETURN(const TokenWindows windows,
                       arguments[0] == "calibration"
                           ? LoadCalibrationWindows(arguments[1], folder, config, samples, length)
                           : LoadEvaluationWindows(arguments[1], folder, config, samples, length));
  return WriteSafetensors(arguments[5], std::vector<NamedTensor>{{"input_ids", windows.ids}}, {})
      .status();
}

absl::Status Run(const std::vector<std::string>& arguments) {
  if (arguments.size() == 2 && arguments[0] == "export") return Export(arguments[1]);
  if (arguments.size() == 7 && arguments[0] == "tokens") {
    return Tokens({arguments.begin() + 1, arguments.end()});
  }
  return absl::InvalidArgumentError("usage: see the head of format_tool.cc");
}

}  // namespace
}  // namespace ptq

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const absl::Status status =
      ptq::CatchTorchErrors("format_tool", [&] { return ptq::Run(arguments); });
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? EXIT_SUCCESS : EXIT_FAILURE;
}
