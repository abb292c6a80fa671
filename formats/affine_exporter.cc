// The affine format: torchao's safetensors layout, which transformers loads. The shards of the
// blocks are the job's records.
#include <array>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "common/status_macros.h"
#include "common/torch_status.h"
#include "formats/checkpoint_exporter.h"
#include "formats/checkpoint_folder.h"
#include "formats/torchao_metadata.h"

namespace ptq {
namespace {

// All parameters of the model, in the model's order.
std::vector<TorchaoParameter> Parameters(const ExportPlan& plan) {
  std::map<std::string, const PlannedModule*> planned;
  for (const PlannedModule& module : plan.modules) planned[module.module + ".weight"] = &module;
  std::vector<TorchaoParameter> parameters;
  for (const TableTensor& tensor : BuildTensorTable(plan.source.config)) {
    TorchaoParameter& parameter = parameters.emplace_back();
    parameter.name = tensor.name;
    const auto module = planned.find(tensor.name);
    if (module == planned.end()) continue;
    parameter.quantized = true;
    parameter.scheme = module->second->scheme;
    parameter.out_features = module->second->out_features;
    parameter.in_features = module->second->in_features;
  }
  return parameters;
}

class AffineExporter final : public CheckpointExporter {
 public:
  explicit AffineExporter(CheckpointFolder folder)
      : folder_(std::move(folder)), dtype_(CheckpointDType(folder_.plan().source)) {}

  int64_t shard_count() const override { return folder_.shard_count(); }
  std::string ShardName(int64_t index) const override { return folder_.ShardName(index); }

  absl::StatusOr<std::string> WriteBlock(int64_t block, const std::vector<QuantizedModule>& modules,
                                         const CheckpointReader& reader) override {
    return CatchTorchErrors("affine output", [&]() -> absl::StatusOr<std::string> {
      PTQ_ASSIGN_OR_RETURN(const auto valid, folder_.ValidModules(block, modules));
      const std::vector<RecordLayout>& layouts = folder_.layouts(block);
      std::vector<NamedTensor> tensors;
      for (size_t i = 0; i < valid.size(); ++i) {
        for (NamedTensor& tensor : RecordTensors(layouts[i], valid[i].weight)) {
          tensors.push_back(std::move(tensor));
        }
      }
      return folder_.WriteShard(
          block + 1, ToLazy(std::move(tensors)), reader, [&](RecordCheck& file) -> absl::Status {
            for (size_t i = 0; i < valid.size(); ++i) {
              PTQ_RETURN_IF_ERROR(file.CheckAffine(ViewOf(layouts[i], valid[i]), dtype_));
            }
            return absl::OkStatus();
          });
    });
  }

  absl::StatusOr<std::vector<QuantizedModule>> ReadBlock(int64_t block) const override {
    if (block < 0 || block >= folder_.block_count()) {
      return absl::InvalidArgumentError("there is no block " + std::to_string(block));
    }
    return ReadRecords(folder_.ShardPath(block + 1), folder_.layouts(block));
  }

  absl::StatusOr<std::array<std::string, 2>> WriteOuterShards(
      const CheckpointReader& reader, const CancellationToken& cancel) override {
    return folder_.WriteOuterShards(reader, cancel);
  }

  absl::Status Finalize() override {
    const ExportPlan& plan = folder_.plan();
    return folder_.Finalize(TorchaoQuantizationConfig(plan.default_scheme, plan.skipped));
  }

 private:
  CheckpointFolder folder_;
  DType dtype_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CheckpointExporter>> MakeAffineExporter(ExportPlan plan,
                                                                       const std::string& folder) {
  for (const PlannedModule& module : plan.modules) {
    if (!module.transposed) continue;
    return absl::FailedPreconditionError(
        module.module +
        ".weight is stored as [in, out], which torchao's loader has no quantized tensors for: "
        "choose format dequantized");
  }
  auto metadata = TorchaoMetadata(Parameters(plan), CheckpointDType(plan.source),
                                  plan.default_scheme.scale_rule);
  PTQ_ASSIGN_OR_RETURN(
      auto checkpoint,
      CheckpointFolder::Create(std::move(plan), folder, std::move(metadata), RecordTensorNames));
  return std::make_unique<AffineExporter>(std::move(checkpoint));
}

}  // namespace ptq
