#include "algorithms/auto_round/fp8.h"

#include <ATen/ATen.h>

#include "algorithms/cuda/device_kernels.h"

namespace ptq {
namespace {

constexpr int kHopper = 90;

}  // namespace

bool HasFp8Products() {
  return LoadedCuda() != nullptr && CudaKernels().compute_capability() == kHopper;
}

bool IsFp8Product(int64_t m, int64_t n, int64_t k) {
  return m % kFp8Block == 0 && n % kFp8Block == 0 && k % kFp8Block == 0;
}

// Their rows begin at multiples of 16 bytes.
bool TakesTileScales(int64_t k) { return k / kFp8Block % 4 == 0; }

at::Tensor Fp8Product(const Fp8Operand& a, const Fp8Operand& b) {
  return at::_scaled_mm(a.values, b.values.t(), a.scale, b.scale.t(), /*bias=*/{},
                        /*scale_result=*/{}, at::kBFloat16, /*use_fast_accum=*/false);
}

Fp8Layouts MakeFp8Layouts(Fp8TileSpans spans, const Fp8Wanted& wanted, const at::Tensor& like) {
  const auto bytes = like.options().dtype(at::kFloat8_e4m3fn);
  const auto floats = like.options().dtype(at::kFloat);
  const int64_t rows = spans.rows;
  const int64_t columns = spans.columns;
  Fp8Layouts layouts;
  if (wanted.wide) {
    layouts.wide = at::empty({rows, columns}, like.options().dtype(at::kBFloat16));
    spans.wide = layouts.wide.mutable_data_ptr();
  }
  if (wanted.rows) {
    const at::Tensor scale = at::empty({columns / kFp8Block, rows}, floats);
    layouts.rows = {at::empty({rows, columns}, bytes), scale.t()};
    spans.by_row = static_cast<uint8_t*>(layouts.rows.values.mutable_data_ptr());
    spans.by_row_scale = scale.mutable_data_ptr<float>();
  }
  if (wanted.columns) {
    spans.tile_scales = wanted.tile_scales;
    const at::Tensor scale = wanted.tile_scales
                                 ? at::empty({columns / kFp8Block, rows / kFp8Block}, floats)
                                 : at::empty({rows / kFp8Block, columns}, floats);
    layouts.columns = {at::empty({columns, rows}, bytes), wanted.tile_scales ? scale : scale.t()};
    spans.by_column = static_cast<uint8_t*>(layouts.columns.values.mutable_data_ptr());
    spans.by_column_scale = scale.mutable_data_ptr<float>();
  }
  CheckCuda(CudaKernels().fp8_tiles(spans, CudaKernels().current_stream()));
  return layouts;
}

Fp8Layouts MakeFp8Layouts(const at::Tensor& values, const Fp8Wanted& wanted) {
  Fp8Layouts layouts;
  if (wanted.rows || wanted.columns) {
    TORCH_CHECK(values.scalar_type() == at::kBFloat16 && values.is_contiguous(),
                "FP8 operands are made of contiguous bfloat16 values");
    layouts = MakeFp8Layouts(
        {.source = Fp8Source::kValues,
         .values = values.const_data_ptr(),
         .rows = values.size(0),
         .columns = values.size(1),
         .dtype = HiddenDtype::kBFloat16},
        {.rows = wanted.rows, .columns = wanted.columns, .tile_scales = wanted.tile_scales},
        values);
  }
  if (wanted.wide) layouts.wide = values;
  return layouts;
}

}  // namespace ptq
