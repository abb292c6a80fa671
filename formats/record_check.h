// Reads back a shard that was just written and compares it with what it was made from, bit by bit:
// plain loops over raw bytes, with nothing of the writer's and no libtorch arithmetic.
#ifndef PTQ_FORMATS_RECORD_CHECK_H_
#define PTQ_FORMATS_RECORD_CHECK_H_

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/k_quant.h"
#include "formats/headers/dtype.h"
#include "formats/headers/safetensors_header.h"

namespace ptq {

// A record's memory, contiguous, on the CPU. Borrows.
struct RecordView {
  std::string module;
  int64_t rows = 0;
  int64_t columns = 0;
  std::array<int64_t, 2> block_size{};
  int bits = 0;
  const int8_t* codes = nullptr;        // [rows, columns]
  DType scale_dtype = DType::kF16;      // F16, BF16 or F32
  const void* scale = nullptr;          // [rows / block_size[0], columns / block_size[1]]
  const int32_t* zero_point = nullptr;  // as scale
  // Of a K-quant, in place of scale and zero_point: SuperBlockScales.
  KQuant k_quant = KQuant::kNone;
  const void* super_scale = nullptr;
  const void* super_minimum = nullptr;  // nullptr where symmetric
  const int8_t* sub_scale = nullptr;
  const int8_t* sub_minimum = nullptr;  // likewise
  bool transposed = false;              // a dequantized weight lies as [columns, rows]
};

// Element `index` of an array of F16, BF16 or F32.
float DecodeFloat(const char* data, int64_t index, DType dtype);

// One open file. Each Check* returns kDataLoss naming file and tensor at the first difference.
class RecordCheck {
 public:
  static absl::StatusOr<RecordCheck> Open(const std::string& path);

  // The torchao-layout tensors of `record` decode, by the file's own metadata, to the record's
  // values in float32; codes are in range, scales finite and not 0; the metadata name `dtype`.
  absl::Status CheckAffine(const RecordView& record, DType dtype);
  // The same of a K-quant's record (formats/k_quant_record.h): its tensors are there, byte by byte.
  absl::Status CheckKQuant(const RecordView& record);
  // "<module>.weight" of `dtype` holds the record's values, each rounded once to nearest even.
  // kFailedPrecondition if a value does not fit in `dtype`.
  absl::Status CheckDequantized(const RecordView& record, DType dtype);
  // Tensor `name` holds exactly the `size` bytes that `read(offset, size, out)` gives in pieces,
  // whose error is returned as it is.
  absl::Status CheckBytes(
      const std::string& name, int64_t size,
      const std::function<absl::Status(int64_t offset, int64_t size, void* out)>& read);
  // Every tensor of the file has been named in a check.
  absl::Status CheckNothingElse() const;

  // For checks of other layouts (formats/packed_check.h).
  // Finds a tensor, marks it as seen, and checks dtype and shape.
  absl::StatusOr<TensorInfo> Find(const std::string& name, DType dtype,
                                  const std::vector<int64_t>& shape);
  // `bytes` [begin, begin + size) of the tensor; memory that is there already is used again.
  absl::Status ReadPiece(const TensorInfo& info, int64_t begin, int64_t size,
                         std::string& bytes) const;
  // kDataLoss: the tensor was not written as it should be.
  absl::Status Wrong(const std::string& name, const std::string& what) const;

 private:
  RecordCheck(ReadableFile file, SafetensorsHeader header);

  ReadableFile file_;
  SafetensorsHeader header_;
  std::map<std::string, size_t> tensors_;  // by name, into header_.tensors
  std::set<std::string> seen_;
};

}  // namespace ptq

#endif  // PTQ_FORMATS_RECORD_CHECK_H_
