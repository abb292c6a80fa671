#include "algorithms/rtn/k_quant.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>

#include "algorithms/rtn/k_quant_kernel.h"
#include "algorithms/rtn/scale_search.h"
#include "common/quantization_scheme.h"
#include "common/status_macros.h"

namespace ptq {
namespace {

constexpr int64_t kValuesPerPiece = int64_t{1} << 20;  // between two looks at `cancel`

// Rows [first, first + rows of `values`) of `record`.
void SearchRows(const at::Tensor& values, const float* importance, int64_t first,
                AffineQuantizedTensor& record) {
  const int64_t columns = values.size(1);
  const int64_t super_blocks = columns / kSuperBlock;
  const int64_t groups = kSuperBlock / record.block_size[1];
  SuperBlockScales& scales = record.super_blocks;
  const float* weights = values.const_data_ptr<float>();
  auto* codes = record.int_data.mutable_data_ptr<int8_t>();
  auto* scale = scales.scale.mutable_data_ptr<c10::Half>();
  auto* sub_scale = scales.sub_scale.mutable_data_ptr<int8_t>();
  c10::Half* minimum = nullptr;
  int8_t* sub_minimum = nullptr;
  if (scales.minimum.defined()) {
    minimum = scales.minimum.mutable_data_ptr<c10::Half>();
    sub_minimum = scales.sub_minimum.mutable_data_ptr<int8_t>();
  }
  at::parallel_for(0, values.size(0), 1, [&](int64_t begin, int64_t end) {
    KQuantSuperBlock found;
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t block = 0; block < super_blocks; ++block) {
        SearchKQuant(record.k_quant, weights + row * columns + block * kSuperBlock,
                     importance + block * kSuperBlock, &found);
        const int64_t at = (first + row) * super_blocks + block;
        std::memcpy(codes + at * kSuperBlock, found.codes, sizeof(found.codes));
        scale[at] = c10::Half(found.scale);
        std::memcpy(sub_scale + at * groups, found.sub_scale, static_cast<size_t>(groups));
        if (minimum == nullptr) continue;
        minimum[at] = c10::Half(found.minimum);
        std::memcpy(sub_minimum + at * groups, found.sub_minimum, static_cast<size_t>(groups));
      }
    }
  });
}

}  // namespace

absl::StatusOr<AffineQuantizedTensor> QuantizeKQuant(const at::Tensor& weight,
                                                     const at::Tensor& importance,
                                                     at::ScalarType stored_dtype, KQuant type,
                                                     const CancellationToken& cancel) {
  const c10::NoGradGuard no_grad;
  const QuantizationScheme scheme = KQuantScheme(type);
  const int64_t rows = weight.size(0);
  const int64_t columns = weight.size(1);
  TORCH_CHECK(columns % kSuperBlock == 0, columns, " columns are no multiple of ", kSuperBlock);
  const at::Tensor weights_of_columns = importance.defined()
                                            ? NormalizeImportance(importance, weight)
                                            : at::ones({columns}, at::kFloat);
  const auto empty = [rows](int64_t width, at::ScalarType dtype) {
    return at::empty({rows, width}, at::TensorOptions().dtype(dtype));
  };
  AffineQuantizedTensor record;
  record.int_data = empty(columns, at::kChar);
  record.block_size = {1, scheme.group_size};
  record.quant_min = scheme.quant_min();
  record.quant_max = scheme.quant_max();
  record.mapping_type = scheme.symmetric ? MappingType::kSymmetric : MappingType::kAsymmetric;
  record.bits = scheme.bits;
  record.original_dtype = stored_dtype;
  record.k_quant = type;
  SuperBlockScales& scales = record.super_blocks;
  scales.scale = empty(columns / kSuperBlock, at::kHalf);
  scales.sub_scale = empty(columns / scheme.group_size, at::kChar);
  if (!scheme.symmetric) {
    scales.minimum = empty(columns / kSuperBlock, at::kHalf);
    scales.sub_minimum = empty(columns / scheme.group_size, at::kChar);
  }
  const int64_t step = std::max<int64_t>(1, kValuesPerPiece / columns);
  for (int64_t row = 0; row < rows; row += step) {
    PTQ_RETURN_IF_ERROR(cancel.Check());
    const at::Tensor piece = weight.narrow(0, row, std::min(step, rows - row));
    SearchRows(piece.to(at::kCPU, at::kFloat).contiguous(),
               weights_of_columns.const_data_ptr<float>(), row, record);
  }
  for (at::Tensor* tensor : TensorsOf(record)) *tensor = tensor->to(weight.device());
  return record;
}

}  // namespace ptq
