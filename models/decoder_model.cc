#include "models/decoder_model.h"

#include <ATen/core/grad_mode.h>
#include <ATen/cpu/Utils.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "common/torch_status.h"
#include "models/block_weights.h"
#include "models/rotary.h"
#include "models/transformer_block.h"

namespace ptq {
namespace {

bool HasNativeBfloat16Products() {
  const auto capabilities = at::cpu::get_cpu_capabilities();
  for (const char* name : {"amx_bf16", "avx512_bf16"}) {
    const auto found = capabilities.find(name);
    if (found != capabilities.end() && found->second.isBool() && found->second.toBool()) {
      return true;
    }
  }
  return false;
}

// `read`, if it is the tensor of this row of the table.
absl::StatusOr<at::Tensor> OfShape(absl::StatusOr<at::Tensor> read, const TableTensor& row) {
  PTQ_ASSIGN_OR_RETURN(at::Tensor tensor, std::move(read));
  const std::vector<int64_t> shape = row.stored_shape();
  if (tensor.sizes() != at::IntArrayRef(shape)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: the shape is [%s], but config.json says [%s]", row.name,
                        absl::StrJoin(tensor.sizes(), ", "), absl::StrJoin(shape, ", ")));
  }
  return tensor;
}

// The first row of this part and role, or nullptr.
const TableTensor* FindRow(const std::vector<TableTensor>& table, TensorPart part,
                           TensorRole role) {
  for (const TableTensor& row : table) {
    if (row.part == part && row.role == role) {
      return &row;
    }
  }
  return nullptr;
}

// body(first row, rows in `dtype`) for pieces of `weight` [V, D].
template <typename Body>
void ForPieces(const at::Tensor& weight, at::ScalarType dtype, const Body& body) {
  constexpr int64_t kElements = int64_t{1} << 22;
  const int64_t rows = std::max<int64_t>(1, kElements / weight.size(1));
  for (int64_t begin = 0; begin < weight.size(0); begin += rows) {
    const int64_t count = std::min(rows, weight.size(0) - begin);
    body(begin, weight.narrow(0, begin, count).to(dtype));
  }
}

}  // namespace

at::ScalarType ChooseComputeDtype(at::Device device, at::ScalarType stored) {
  if (!device.is_cpu()) {
    return stored;
  }
  static const bool native_bfloat16 = HasNativeBfloat16Products();
  return stored == at::kBFloat16 && native_bfloat16 ? at::kBFloat16 : at::kFloat;
}

at::Tensor LanguageModelHead::Normalize(const at::Tensor& hidden) const {
  return ApplyNorm(norm, hidden);
}

at::Tensor LanguageModelHead::Project(const at::Tensor& normalized) const {
  at::Tensor logits = Product(normalized);
  if (divisor != 1) logits.div_(divisor);
  if (soft_cap > 0) logits.div_(soft_cap).tanh_().mul_(soft_cap);
  return logits;
}

at::Tensor LanguageModelHead::Product(const at::Tensor& normalized) const {
  if (normalized.is_cuda() && normalized.scalar_type() != at::kFloat &&
      normalized.scalar_type() == head_weight.scalar_type()) {
    // Products of half-precision values summed and kept in float32.
    std::vector<int64_t> shape = normalized.sizes().vec();
    shape.back() = head_weight.size(0);
    return at::mm(normalized.flatten(0, -2), head_weight.t(), at::kFloat).view(shape);
  }
  if (normalized.scalar_type() == head_weight.scalar_type()) {
    return at::linear(normalized, head_weight).to(at::kFloat);
  }
  std::vector<int64_t> shape = normalized.sizes().vec();
  shape.back() = head_weight.size(0);
  at::Tensor logits = at::empty(shape, normalized.options().dtype(at::kFloat));
  ForPieces(head_weight, normalized.scalar_type(), [&](int64_t begin, const at::Tensor& piece) {
    logits.narrow(-1, begin, piece.size(0)).copy_(at::linear(normalized, piece));
  });
  return logits;
}

at::Tensor LanguageModelHead::ProjectBackward(const at::Tensor& logits_gradient,
                                              const at::Tensor& logits) const {
  if (soft_cap > 0) {
    // d (c tanh(z / c)) / dz = 1 - tanh(z / c)², in float32.
    const at::Tensor slope = logits.div(soft_cap).square_().neg_().add_(1);
    return ProductBackward(slope.mul_(logits_gradient)).div_(divisor);
  }
  const at::Tensor gradient = ProductBackward(logits_gradient);
  return divisor == 1 ? gradient : gradient / divisor;
}

at::Tensor LanguageModelHead::ProductBackward(const at::Tensor& logits_gradient) const {
  const at::ScalarType dtype = norm.weight.scalar_type();
  if (dtype == head_weight.scalar_type()) {
    return at::mm(logits_gradient.to(dtype), head_weight);
  }
  at::Tensor gradient = at::zeros({logits_gradient.size(0), head_weight.size(1)},
                                  logits_gradient.options().dtype(dtype));
  ForPieces(head_weight, dtype, [&](int64_t begin, const at::Tensor& piece) {
    gradient.addmm_(logits_gradient.narrow(1, begin, piece.size(0)).to(dtype), piece);
  });
  return gradient;
}

absl::StatusOr<std::unique_ptr<DecoderModel>> DecoderModel::Create(const ModelConfig& config,
                                                                   const CheckpointReader& reader,
                                                                   const ComputeOptions& options) {
  if (!IsSupportedModelType(config.model_type)) {
    return absl::UnimplementedError(
        absl::StrFormat("model_type \"%s\" is not supported", config.model_type));
  }
  return std::unique_ptr<DecoderModel>(new DecoderModel(config, reader, options));
}

absl::StatusOr<at::Tensor> DecoderModel::ReadEmbedding(const at::Tensor& ids) const {
  if (ids.dim() != 2 || ids.numel() == 0 || ids.scalar_type() != at::kLong) {
    return absl::InvalidArgumentError("token ids must be a non-empty int64 [samples, length]");
  }
  const int64_t lowest = ids.min().item<int64_t>();
  const int64_t highest = ids.max().item<int64_t>();
  if (lowest < 0 || highest >= config_.vocab_size) {
    return absl::InvalidArgumentError(
        absl::StrFormat("token id %d is outside of the model's vocabulary of %d",
                        lowest < 0 ? lowest : highest, config_.vocab_size));
  }
  if (config_.position_offset && ids.size(1) > config_.max_position_embeddings) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d tokens are more than the model has positions (%d)", ids.size(1),
                        config_.max_position_embeddings));
  }
  return ReadOuter(TensorPart::kTokenEmbedding, TensorRole::kEmbedding);
}

absl::StatusOr<at::Tensor> DecoderModel::ReadOuter(TensorPart part, TensorRole role) const {
  const std::vector<TableTensor> table = BuildTensorTable(config_);
  const TableTensor* row = FindRow(table, part, role);
  if (row == nullptr) return absl::InternalError("the tensor table lacks a part of the model");
  return OfShape(reader_.Read(row->name), *row);
}

absl::StatusOr<at::Tensor> DecoderModel::ReadPositions(int64_t length) const {
  if (!config_.position_offset) return at::Tensor();
  PTQ_ASSIGN_OR_RETURN(const at::Tensor positions,
                       ReadOuter(TensorPart::kPositionEmbedding, TensorRole::kEmbedding));
  return positions.narrow(0, *config_.position_offset, length)
      .to(at::TensorOptions(options_.device).dtype(options_.dtype));
}

at::Tensor DecoderModel::Embedded(const at::Tensor& rows, const at::Tensor& positions) const {
  at::Tensor hidden = rows;
  if (config_.embedding_multiplier != 1) {
    double multiplier = config_.embedding_multiplier;
    if (config_.round_embedding_multiplier) {
      multiplier = at::scalar_tensor(multiplier, options_.dtype).item<double>();
    }
    hidden = hidden * multiplier;
  }
  return positions.defined() ? hidden + positions.to(hidden.device()) : hidden;
}

absl::StatusOr<at::Tensor> DecoderModel::Embed(const at::Tensor& ids,
                                               const HiddenAllocator& allocate) const {
  return CatchTorchErrors("embedding", [&]() -> absl::StatusOr<at::Tensor> {
    const at::NoGradGuard no_grad;
    PTQ_ASSIGN_OR_RETURN(const at::Tensor embedding, ReadEmbedding(ids));
    PTQ_ASSIGN_OR_RETURN(const at::Tensor positions, ReadPositions(ids.size(1)));
    const at::Tensor hidden =
        allocate({ids.size(0), ids.size(1), config_.hidden_size}, options_.dtype);
    for (int64_t sample = 0; sample < ids.size(0); ++sample) {
      const at::Tensor rows = embedding.index_select(0, ids.select(0, sample)).to(options_.dtype);
      hidden.select(0, sample).copy_(Embedded(rows, positions));
    }
    return hidden;
  });
}

absl::StatusOr<at::Tensor> DecoderModel::Embed(const at::Tensor& ids) const {
  return CatchTorchErrors("embedding", [&]() -> absl::StatusOr<at::Tensor> {
    at::NoGradGuard no_grad;
    PTQ_ASSIGN_OR_RETURN(const at::Tensor embedding, ReadEmbedding(ids));
    PTQ_ASSIGN_OR_RETURN(const at::Tensor positions, ReadPositions(ids.size(1)));
    std::vector<int64_t> shape = ids.sizes().vec();
    shape.push_back(config_.hidden_size);
    // Of more tokens than the vocabulary has, the states would be more to move than the embedding.
    const bool all = ids.numel() > embedding.size(0);
    const at::Tensor rows = all ? embedding.to(options_.device) : embedding;
    return Embedded(rows.index_select(0, ids.flatten().to(rows.device()))
                        .view(shape)
                        .to(at::TensorOptions(options_.device).dtype(options_.dtype)),
                    positions);
  });
}

std::vector<TableTensor> DecoderModel::BlockTensors(int64_t index) const {
  return BuildBlockTable(config_, index);
}

absl::StatusOr<std::unique_ptr<DecoderBlock>> DecoderModel::LoadBlock(int64_t index) const {
  return MakeBlock(index, [this](const std::string& name) { return reader_.Read(name); });
}

absl::StatusOr<std::unique_ptr<DecoderBlock>> DecoderModel::MakeBlock(
    int64_t index, const TensorSource& read) const {
  const std::string name = BlockName(config_, index);
  return CatchTorchErrors(name, [&]() -> absl::StatusOr<std::unique_ptr<DecoderBlock>> {
    if (index < 0 || index >= block_count()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("there is no %s: the model has %d blocks", name, block_count()));
    }
    at::NoGradGuard no_grad;
    BlockWeights weights(name, config_.norm, config_.norm_eps);
    for (const TableTensor& row : BlockTensors(index)) {
      PTQ_ASSIGN_OR_RETURN(at::Tensor tensor, OfShape(read(row.name), row));
      const bool wide = row.part == TensorPart::kRouterCorrection;
      tensor =
          tensor.to(at::TensorOptions(options_.device).dtype(wide ? at::kFloat : options_.dtype));
      if (row.transposed) tensor = tensor.t().contiguous();
      PTQ_RETURN_IF_ERROR(weights.Add(row, tensor));
    }
    return TransformerBlock::Create(config_, index, weights);
  });
}

absl::StatusOr<LanguageModelHead> DecoderModel::LoadHead() const {
  return CatchTorchErrors("language-model head", [&]() -> absl::StatusOr<LanguageModelHead> {
    at::NoGradGuard no_grad;
    const at::TensorOptions options = at::TensorOptions(options_.device).dtype(options_.dtype);
    LanguageModelHead result;
    result.norm.kind = config_.norm;
    result.norm.epsilon = config_.norm_eps;
    PTQ_ASSIGN_OR_RETURN(const at::Tensor weight,
                         ReadOuter(TensorPart::kFinalNorm, TensorRole::kNorm));
    result.norm.weight = weight.to(options);
    if (config_.norm == NormKind::kLayer) {
      PTQ_ASSIGN_OR_RETURN(const at::Tensor bias,
                           ReadOuter(TensorPart::kFinalNorm, TensorRole::kNormBias));
      result.norm.bias = bias.to(options);
    }
    const bool tied = config_.tie_word_embeddings;
    PTQ_ASSIGN_OR_RETURN(const at::Tensor head,
                         tied ? ReadOuter(TensorPart::kTokenEmbedding, TensorRole::kEmbedding)
                              : ReadOuter(TensorPart::kHead, TensorRole::kHead));
    result.head_weight = head.to(options_.device);
    result.divisor = config_.logits_divisor;
    result.soft_cap = config_.logits_soft_cap;
    return result;
  });
}

RotaryTable DecoderModel::MakeRotaryTable(int64_t length) const {
  at::NoGradGuard no_grad;
  if (!config_.attention.rotary) return {};
  const at::ScalarType dtype =
      config_.latent_attention.float32_rotation ? at::kFloat : options_.dtype;
  const auto compute = [&](const RopeConfig& rope) {
    return ComputeRotaryTable(rope, config_, length, dtype, options_.device);
  };
  RotaryTable table = compute(config_.rope);
  if (config_.local_rope) {
    table.local = std::make_shared<const RotaryTable>(compute(*config_.local_rope));
  }
  return table;
}

}  // namespace ptq
