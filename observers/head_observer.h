// What the language-model head sees on the quantized chain: the final norm's output.
#ifndef PTQ_OBSERVERS_HEAD_OBSERVER_H_
#define PTQ_OBSERVERS_HEAD_OBSERVER_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "models/decoder_model.h"
#include "observers/linear_observer.h"
#include "observers/observed_block.h"

namespace ptq {

// Statistics of the inputs of `head` over samples `hidden` [S, T, D] behind the last block, on the
// device or in host memory, `micro_batch` samples at a time: as of a block's layers, importance of
// about 65536 tokens, Hessians of all. kNone is no choice. Equal calls give equal bits.
absl::StatusOr<LinearStatistics> ObserveHead(const LanguageModelHead& head,
                                             const std::string& module, const at::Tensor& hidden,
                                             int64_t micro_batch, InputStatistics statistics);

// The inputs of `head` that errors are measured on, as of a block's layers: [n, D] for about 4096
// tokens in whole, evenly spread samples of `hidden`, on the head's device.
absl::StatusOr<at::Tensor> HeadErrorInputs(const LanguageModelHead& head, const at::Tensor& hidden);

}  // namespace ptq

#endif  // PTQ_OBSERVERS_HEAD_OBSERVER_H_
