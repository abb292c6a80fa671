#include "observers/linear_observer.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <utility>

#include "algorithms/cuda/device_kernels.h"

namespace ptq {
namespace {

// Hessians are symmetric: of 8 panels of rows only what lies right of the diagonal is computed,
// which saves up to 44 % of the products. Narrower panels would make slow products. On an H200
// panels of 1024 rows are the fastest for K = 4096 and 14336.
constexpr int64_t kMinPanel = 256;
constexpr int64_t kMaxPanels = 8;
constexpr int64_t kDevicePanel = 1024;
// Bounds what is in memory beside the inputs: a float32 copy of half-precision ones, and squares.
constexpr int64_t kMaxSliceElements = int64_t{1} << 24;

int64_t PanelWidth(const at::Tensor& hessian) {
  if (hessian.is_cuda()) return kDevicePanel;
  return std::max(kMinPanel, (hessian.size(0) + kMaxPanels - 1) / kMaxPanels);
}

// A GPU multiplies 16-bit inputs as they are, with float32 sums.
bool NeedsNoCopy(const at::Tensor& inputs) {
  return inputs.is_cuda() &&
         (inputs.scalar_type() == at::kBFloat16 || inputs.scalar_type() == at::kHalf);
}

// The upper block triangle of hessian [K, K] float32 += inputs [n, K]ᵀ · inputs, summed in float32.
// `inputs` are float32, or need no copy.
void AddProducts(const at::Tensor& inputs, at::Tensor& hessian) {
  at::NoTF32Guard no_tf32;
  const int64_t size = inputs.size(1);
  const int64_t panel = PanelWidth(hessian);
  for (int64_t begin = 0; begin < size; begin += panel) {
    const int64_t rows = std::min(panel, size - begin);
    const at::Tensor right = inputs.narrow(1, begin, size - begin);
    const at::Tensor left = inputs.narrow(1, begin, rows).t();
    at::Tensor strip = hessian.narrow(0, begin, rows).narrow(1, begin, size - begin);
    if (inputs.scalar_type() == at::kFloat) {
      strip.addmm_(left, right);
    } else {
      at::addmm_out(strip, strip, left, right, at::kFloat);
    }
  }
}

void MirrorUpperTriangle(at::Tensor& hessian) {
  const int64_t size = hessian.size(0);
  const int64_t panel = PanelWidth(hessian);
  for (int64_t begin = 0; begin < size; begin += panel) {
    const int64_t rows = std::min(panel, size - begin);
    const int64_t rest = size - begin - rows;
    const at::Tensor strip = hessian.narrow(0, begin, rows);
    at::Tensor diagonal = strip.narrow(1, begin, rows);
    diagonal.copy_(diagonal.triu() + diagonal.triu(1).t());
    hessian.narrow(0, begin + rows, rest)
        .narrow(1, begin, rows)
        .copy_(strip.narrow(1, begin + rows, rest).t());
  }
}

// Sums of squares of the columns of rows [n, K] on CUDA in 16 bits, [K] float32.
at::Tensor DeviceColumnSquares(const at::Tensor& rows) {
  const CudaApi& cuda = CudaKernels();
  const at::Tensor values = rows.contiguous();
  ColumnSquareSpans spans = {.values = values.const_data_ptr(),
                             .rows = values.size(0),
                             .width = values.size(1),
                             .dtype = HiddenDtypeOf(values.scalar_type())};
  const at::Tensor sums =
      at::empty({spans.slices(), spans.width}, values.options().dtype(at::kFloat));
  spans.sums = sums.mutable_data_ptr<float>();
  CheckCuda(cuda.column_squares(spans, cuda.current_stream()));
  return sums.sum(0);
}

}  // namespace

LinearObserver::LinearObserver(const DecoderBlock& block, bool hessians)
    : block_(block),
      hessians_(hessians),
      statistics_(block.linears().size()),
      leaders_(block.linears().size(), -1) {}

LinearFunction LinearObserver::Observe() {
  return [this](size_t index, const at::Tensor& input) {
    Record(index, input);
    const Linear& linear = block_.linears()[index];
    return ApplyLinear(linear, linear.weight, input);
  };
}

void LinearObserver::Record(size_t index, const at::Tensor& input) {
  at::NoGradGuard no_grad;
  const auto self = static_cast<int64_t>(index);
  const int64_t leader = input.is_same(last_input_) ? last_leader_ : self;
  TORCH_CHECK(leaders_[index] < 0 || leaders_[index] == leader, block_.linears()[index].module,
              ": the layers that share its input changed while it was observed");
  leaders_[index] = leader;
  const at::Tensor rows = input.flatten(0, -2);  // [n, K]
  const int64_t size = rows.size(1);
  LinearStatistics& statistics = statistics_[index];
  statistics.tokens += rows.size(0);
  if (leader != self) return;
  at::Tensor& sums = hessians_ ? statistics.hessian : statistics.importance;
  if (!sums.defined()) {
    const at::TensorOptions options = rows.options().dtype(at::kFloat);
    sums = hessians_ ? at::zeros({size, size}, options) : at::zeros({size}, options);
  }
  if (hessians_ && NeedsNoCopy(rows)) {
    AddProducts(rows, sums);
  } else if (!hessians_ && rows.is_cuda() && rows.element_size() == 2 && size % kHiddenPack == 0) {
    sums.add_(DeviceColumnSquares(rows));
  } else {
    const int64_t slice = std::max<int64_t>(1, kMaxSliceElements / size);
    for (int64_t begin = 0; begin < rows.size(0); begin += slice) {
      const int64_t count = std::min(slice, rows.size(0) - begin);
      const at::Tensor wide = rows.narrow(0, begin, count).to(at::kFloat);
      if (hessians_) {
        AddProducts(wide, sums);
      } else {
        sums.add_(wide.square().sum(0));
      }
    }
  }
  last_input_ = input;
  last_leader_ = self;
}

bool LinearObserver::SawAll() const {
  return std::none_of(statistics_.begin(), statistics_.end(),
                      [](const LinearStatistics& linear) { return linear.tokens == 0; });
}

std::vector<LinearStatistics> LinearObserver::Finish() {
  at::NoGradGuard no_grad;
  for (size_t index = 0; index < statistics_.size(); ++index) {
    LinearStatistics& statistics = statistics_[index];
    if (leaders_[index] == static_cast<int64_t>(index)) {
      if (hessians_) {
        MirrorUpperTriangle(statistics.hessian);
        statistics.importance = statistics.hessian.diagonal().clone();
      }
    } else if (leaders_[index] >= 0) {
      const LinearStatistics& leader = statistics_[leaders_[index]];
      statistics.hessian = leader.hessian;
      statistics.importance = leader.importance;
    }
  }
  last_input_ = at::Tensor();
  last_leader_ = -1;
  std::fill(leaders_.begin(), leaders_.end(), -1);
  return std::exchange(statistics_, std::vector<LinearStatistics>(leaders_.size()));
}

}  // namespace ptq
