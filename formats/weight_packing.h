// How one quantized weight lies in the tensors of a safetensors file.
#ifndef PTQ_FORMATS_WEIGHT_PACKING_H_
#define PTQ_FORMATS_WEIGHT_PACKING_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "algorithms/affine/affine_quantized_tensor.h"
#include "formats/checkpoint_reader.h"
#include "formats/headers/planned_module.h"
#include "formats/record_check.h"
#include "formats/safetensors_writer.h"

namespace ptq {

// Stateless but for what it was made with; const methods may run at the same time.
class WeightPacking {
 public:
  virtual ~WeightPacking() = default;

  // The tensors that stand for the module's weight; the codes' first.
  virtual std::vector<std::string> Names(const PlannedModule& module) const = 0;
  // The tensor whose dtype is that of the scales; "" if there is none.
  virtual std::string ScaleName(const std::string& module) const = 0;
  // These tensors, made when they are asked for; `record`, valid and on the CPU, outlives them.
  // kFailedPrecondition naming tensor, field and another format for what they can't hold.
  virtual absl::StatusOr<std::vector<LazyTensor>> Pack(
      const PlannedModule& module, const AffineQuantizedTensor& record) const = 0;
  // A written file holds the record: decoded with nothing that Pack uses.
  virtual absl::Status Check(const PlannedModule& module, const RecordView& record,
                             RecordCheck& file) const = 0;
  // The record that the tensors hold. kDataLoss for another dtype or shape than `module` has;
  // kFailedPrecondition for what no record can hold, naming tensor and reason.
  virtual absl::StatusOr<AffineQuantizedTensor> Unpack(const PlannedModule& module,
                                                       const CheckpointReader& reader) const = 0;
  // Whether all zero points of the module, whose scheme says asymmetric, are the middle: asked
  // where the config does not say whether a model is symmetric.
  virtual absl::StatusOr<bool> HasMiddleZeros(const PlannedModule& module,
                                              const CheckpointReader& reader) const;
};

// What packings share.

// A tensor that `make` makes, of that dtype and shape, when it is written.
LazyTensor MakeLazy(std::string name, at::ScalarType dtype, std::vector<int64_t> shape,
                    std::function<at::Tensor()> make);
// Columns that share a scale in a file that knows no scale for a whole tensor.
int64_t GroupSizeOf(const PlannedModule& module);
// [N, G]: the record's, repeated for each row where there is one for the whole tensor.
at::Tensor RowScales(const AffineQuantizedTensor& record);
at::Tensor RowZeroPoints(const AffineQuantizedTensor& record);
// RowScales in float16. kFailedPrecondition if that rounds one.
absl::StatusOr<at::Tensor> HalfScales(const PlannedModule& module,
                                      const AffineQuantizedTensor& record,
                                      const std::string& format);
// RowZeroPoints as int8. kFailedPrecondition if one, seen as an unsigned code, is below `lowest` or
// takes more than the codes' bits.
absl::StatusOr<at::Tensor> ByteZeroPoints(const PlannedModule& module,
                                          const AffineQuantizedTensor& record, int lowest,
                                          const std::string& format);
// Reads a tensor that must be of this dtype and shape: kDataLoss otherwise.
absl::StatusOr<at::Tensor> ReadAs(const CheckpointReader& reader, const std::string& name,
                                  at::ScalarType dtype, const std::vector<int64_t>& shape);
// A record of the planned scheme out of its parts: codes int8 [N, K], scale and zero point [N, G].
AffineQuantizedTensor MakeRecord(const PlannedModule& module, at::Tensor codes, at::Tensor scale,
                                 at::Tensor zero_point);

}  // namespace ptq

#endif  // PTQ_FORMATS_WEIGHT_PACKING_H_
