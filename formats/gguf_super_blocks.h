// Records of K-quants as ggml's super-blocks of 256 elements (ggml-common.h: block_q2_K ...
// block_q6_K), without loss.
#ifndef PTQ_FORMATS_GGUF_SUPER_BLOCKS_H_
#define PTQ_FORMATS_GGUF_SUPER_BLOCKS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "algorithms/affine/affine_quantized_tensor.h"
#include "formats/headers/gguf_types.h"

namespace ptq {

// Rows `rows` of `record`, which is a K-quant's, valid and contiguous on the CPU, in that order.
std::string EncodeSuperBlocks(const AffineQuantizedTensor& record,
                              const std::vector<int64_t>& rows);

// Decodes `data`, these rows as they stand in a file, by loops of its own, and compares each value
// with the record's bit by bit. kDataLoss naming `module` and the first difference.
absl::Status CheckSuperBlocks(const std::string& module, const AffineQuantizedTensor& record,
                              GgufType type, const std::vector<int64_t>& rows,
                              const std::string& data);

}  // namespace ptq

#endif  // PTQ_FORMATS_GGUF_SUPER_BLOCKS_H_
