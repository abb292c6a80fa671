// A decoder block's tensors, found by their part of the computation.
#ifndef PTQ_MODELS_BLOCK_WEIGHTS_H_
#define PTQ_MODELS_BLOCK_WEIGHTS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/headers/tensor_table.h"
#include "models/linear.h"
#include "models/norm.h"

namespace ptq {

class BlockWeights {
 public:
  // Of the block `name`, "model.layers.0", whose norms are of `kind`.
  BlockWeights(std::string name, NormKind kind, double epsilon)
      : name_(std::move(name)), kind_(kind), epsilon_(epsilon) {}

  // The tensor of row `row` of the table, in the order of the rows: on the compute device, in its
  // dtype (a kRouterCorrection in float32), linear weights as [out, in]. kInternal for a bias that
  // does not follow its weight.
  absl::Status Add(const TableTensor& row, const at::Tensor& tensor);

  const std::string& name() const { return name_; }
  const std::vector<Linear>& linears() const { return linears_; }
  // Index into linears(). kInvalidArgument naming the block if there is none.
  absl::StatusOr<size_t> LinearOf(TensorPart part, int64_t expert = -1) const;
  bool Has(TensorPart part) const;
  // One of TensorRole::kRouter. kInvalidArgument naming the block if there is none.
  absl::StatusOr<at::Tensor> RouterOf(TensorPart part) const;
  // None if the block has no such norm.
  std::optional<Norm> NormOf(TensorPart part) const;
  // kInvalidArgument naming the block if there is none.
  absl::StatusOr<Norm> NeededNormOf(TensorPart part) const;

 private:
  struct Slot {
    std::string module;
    TensorPart part;
    int64_t expert;
  };

  std::string name_;
  NormKind kind_;
  double epsilon_;
  std::vector<Linear> linears_;
  std::vector<Slot> slots_;  // of linears_
  std::vector<Norm> norms_;
  std::vector<Slot> norm_slots_;
  std::vector<at::Tensor> routers_;
  std::vector<Slot> router_slots_;
};

}  // namespace ptq

#endif  // PTQ_MODELS_BLOCK_WEIGHTS_H_
