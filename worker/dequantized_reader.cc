#include "worker/dequantized_reader.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "algorithms/affine/record_rows.h"
#include "algorithms/vocabulary_quantizer.h"
#include "common/status_macros.h"
#include "common/torch_status.h"

namespace ptq {

absl::Status DequantizedReader::ReadBytes(const std::string& name, int64_t offset, int64_t size,
                                          void* out) const {
  const auto found = records_.find(name);
  if (found == records_.end()) return plain_.ReadBytes(name, offset, size, out);
  return CatchTorchErrors("tensor " + name, [&]() -> absl::Status {
    PTQ_ASSIGN_OR_RETURN(const StoredTensor stored, plain_.Describe(name));
    PTQ_ASSIGN_OR_RETURN(const AffineQuantizedTensor record, found->second());
    if (record.int_data.sizes() != at::IntArrayRef(stored.shape)) {
      return absl::DataLossError(absl::StrCat("tensor ", name, ": its record has another shape"));
    }
    const int64_t row_bytes = stored.bytes() / stored.shape[0];
    const int64_t end = offset + size;
    return ForPiecesOfRows(
        stored.shape[0], stored.shape[1], [&](int64_t begin, int64_t count) -> absl::Status {
          // What [offset, end) has of these rows.
          const int64_t from = std::max(offset, begin * row_bytes);
          const int64_t to = std::min(end, (begin + count) * row_bytes);
          if (from >= to) return absl::OkStatus();
          const at::Tensor rows = Dequantize(RecordRows(record, begin, count), stored.dtype);
          std::memcpy(static_cast<char*>(out) + (from - offset),
                      static_cast<const char*>(rows.const_data_ptr()) + (from - begin * row_bytes),
                      static_cast<size_t>(to - from));
          return absl::OkStatus();
        });
  });
}

}  // namespace ptq
