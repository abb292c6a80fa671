// The dequantized format: a plain checkpoint in the source's dtype whose weights carry the rounding
// of quantization. Loads everywhere; the records stay in a folder of their own, for resuming.
#include <array>
#include <memory>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "common/torch_status.h"
#include "formats/checkpoint_exporter.h"
#include "formats/checkpoint_folder.h"
#include "formats/torchao_metadata.h"

namespace ptq {
namespace {

class DequantizedExporter final : public CheckpointExporter {
 public:
  DequantizedExporter(CheckpointFolder folder, std::string record_folder)
      : folder_(std::move(folder)),
        record_folder_(std::move(record_folder)),
        dtype_(CheckpointDType(folder_.plan().source)) {}

  int64_t shard_count() const override { return folder_.shard_count(); }
  std::string ShardName(int64_t index) const override { return folder_.ShardName(index); }

  absl::StatusOr<std::string> WriteBlock(int64_t block, const std::vector<QuantizedModule>& modules,
                                         const CheckpointReader& reader) override {
    return CatchTorchErrors("dequantized output", [&]() -> absl::StatusOr<std::string> {
      PTQ_ASSIGN_OR_RETURN(const auto valid, folder_.ValidModules(block, modules));
      PTQ_ASSIGN_OR_RETURN(const at::ScalarType scalar_type, ToScalarType(dtype_));
      const std::vector<RecordLayout>& layouts = folder_.layouts(block);
      PTQ_RETURN_IF_ERROR(WriteRecords(block, valid));
      std::vector<LazyTensor> tensors;
      for (size_t i = 0; i < valid.size(); ++i) {
        LazyTensor& tensor = tensors.emplace_back();
        tensor.name = valid[i].module + ".weight";
        tensor.dtype = scalar_type;
        tensor.shape = valid[i].weight.int_data.sizes().vec();
        const bool transposed = layouts[i].module.transposed;
        if (transposed) std::swap(tensor.shape[0], tensor.shape[1]);
        const AffineQuantizedTensor& weight = valid[i].weight;
        tensor.load = [&weight, scalar_type, transposed]() -> absl::StatusOr<at::Tensor> {
          const at::Tensor values = Dequantize(weight, scalar_type);
          return transposed ? values.t().contiguous() : values;
        };
      }
      return folder_.WriteShard(
          block + 1, std::move(tensors), reader, [&](RecordCheck& file) -> absl::Status {
            for (size_t i = 0; i < valid.size(); ++i) {
              PTQ_RETURN_IF_ERROR(file.CheckDequantized(ViewOf(layouts[i], valid[i]), dtype_));
            }
            return absl::OkStatus();
          });
    });
  }

  absl::StatusOr<std::vector<QuantizedModule>> ReadBlock(int64_t block) const override {
    if (block < 0 || block >= folder_.block_count()) {
      return absl::InvalidArgumentError("there is no block " + std::to_string(block));
    }
    return ReadRecords(RecordPath(block), folder_.layouts(block));
  }

  absl::StatusOr<std::array<std::string, 2>> WriteOuterShards(
      const CheckpointReader& reader, const CancellationToken& cancel) override {
    return folder_.WriteOuterShards(reader, cancel);
  }

  absl::Status Finalize() override { return folder_.Finalize(std::nullopt); }

 private:
  std::string RecordPath(int64_t block) const {
    return JoinPath(record_folder_, absl::StrFormat("block-%05d.safetensors", block));
  }

  // The block's records alone, in the affine format's layout.
  absl::Status WriteRecords(int64_t block, const std::vector<QuantizedModule>& valid) const {
    const std::vector<RecordLayout>& layouts = folder_.layouts(block);
    std::vector<NamedTensor> tensors;
    std::vector<TorchaoParameter> parameters;
    for (size_t i = 0; i < valid.size(); ++i) {
      for (NamedTensor& tensor : RecordTensors(layouts[i], valid[i].weight)) {
        tensors.push_back(std::move(tensor));
      }
      const PlannedModule& module = layouts[i].module;
      parameters.push_back({module.module + ".weight", true, module.scheme, module.out_features,
                            module.in_features});
    }
    const auto check = [&](const std::string& path) -> absl::Status {
      PTQ_ASSIGN_OR_RETURN(RecordCheck file, RecordCheck::Open(path));
      for (size_t i = 0; i < valid.size(); ++i) {
        PTQ_RETURN_IF_ERROR(file.CheckAffine(ViewOf(layouts[i], valid[i]), dtype_));
      }
      return file.CheckNothingElse();
    };
    PTQ_RETURN_IF_ERROR(MakeDirectories(record_folder_));
    const auto metadata =
        TorchaoMetadata(parameters, dtype_, folder_.plan().default_scheme.scale_rule);
    return WriteSafetensors(RecordPath(block), std::move(tensors), metadata, check).status();
  }

  CheckpointFolder folder_;
  std::string record_folder_;
  DType dtype_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CheckpointExporter>> MakeDequantizedExporter(
    ExportPlan plan, const std::string& folder, const std::string& record_folder) {
  PTQ_ASSIGN_OR_RETURN(
      auto checkpoint,
      CheckpointFolder::Create(std::move(plan), folder, {{"format", "pt"}},
                               [](const PlannedModule& module) {
                                 return std::vector<std::string>{module.module + ".weight"};
                               }));
  return std::make_unique<DequantizedExporter>(std::move(checkpoint), record_folder);
}

}  // namespace ptq
