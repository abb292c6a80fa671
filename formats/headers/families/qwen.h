// What the Qwen families share.
#ifndef PTQ_FORMATS_HEADERS_FAMILIES_QWEN_H_
#define PTQ_FORMATS_HEADERS_FAMILIES_QWEN_H_

#include "absl/status/status.h"
#include "formats/headers/family.h"

namespace ptq::families {

// use_sliding_window, sliding_window, max_window_layers, layer_types.
absl::Status ReadQwenWindow(const Json& json, ModelConfig* config);

}  // namespace ptq::families

#endif  // PTQ_FORMATS_HEADERS_FAMILIES_QWEN_H_
