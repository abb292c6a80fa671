// Weights with a row a token, the embedding and the language-model head, quantized in pieces of
// rows: they are the largest of a model, and no wide copy of one is ever made.
#ifndef PTQ_ALGORITHMS_VOCABULARY_QUANTIZER_H_
#define PTQ_ALGORITHMS_VOCABULARY_QUANTIZER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "algorithms/block_quantizer.h"
#include "common/cancellation.h"
#include "common/quantization_scheme.h"
#include "observers/linear_observer.h"

namespace ptq {

// Which values a row's codes come from; what the algorithms do with a layer of a block.
enum class RowMethod { kRtn, kOptRtn, kGptq };

struct VocabularyRequest {
  std::string module;  // for messages
  int64_t rows = 0;    // tokens
  int64_t columns = 0;
  // Rows [begin, begin + count) of the weight, [count, columns] in the checkpoint's dtype, on the
  // device that they are to be quantized on.
  std::function<absl::StatusOr<at::Tensor>(int64_t begin, int64_t count)> read;
  QuantizationScheme scheme;  // by groups or rows
  at::ScalarType stored_dtype = at::kFloat;
  RowMethod method = RowMethod::kRtn;
  LinearStatistics statistics;  // of the weight's inputs; for kOptRtn and kGptq
  const CancellationToken& cancel;
  std::function<void(double fraction)> progress;
};

// The record lies on the CPU. Rows do not depend on each other, so the pieces' size changes no bit
// of rtn and opt-rtn. A Hessian that can't be factorized gives opt-rtn and a fallback_reason; so do
// pieces whose errors are not finite. kInvalidArgument for a scheme with one scale for all rows, or
// for values that are not finite; kCancelled.
absl::StatusOr<QuantizedLinear> QuantizeVocabulary(const VocabularyRequest& request);

// Calls body(begin, count) for the pieces that a weight of `rows` x `columns` is taken in, until it
// returns an error.
absl::Status ForPiecesOfRows(int64_t rows, int64_t columns,
                             const std::function<absl::Status(int64_t begin, int64_t count)>& body);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_VOCABULARY_QUANTIZER_H_
