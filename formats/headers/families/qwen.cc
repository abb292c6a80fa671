#include "formats/headers/families/qwen.h"

#include <algorithm>

#include "common/json.h"
#include "common/status_macros.h"
#include "formats/headers/config_json.h"
#include "formats/headers/families/rows.h"

namespace ptq::families {

absl::Status ReadQwenWindow(const Json& json, ModelConfig* config) {
  PTQ_ASSIGN_OR_RETURN(const bool used, ReadFlag(json, "use_sliding_window", false));
  PTQ_ASSIGN_OR_RETURN(const int64_t window, ReadWindow(json, 4096));
  // Zero is a value here: every block has the window.
  int64_t first = 28;
  if (const Json* value = FindKey(json, "max_window_layers"); value != nullptr) {
    if (!value->is_number_unsigned()) return WrongType("max_window_layers", "an integer from 0 on");
    first = static_cast<int64_t>(std::min<uint64_t>(
        value->get<uint64_t>(), static_cast<uint64_t>(config->num_hidden_layers)));
  }
  if (!used || window == 0) return absl::OkStatus();
  config->attention.sliding_window = window;
  return ReadLayerTypes(
      json, config, [](int64_t block, int64_t argument) { return block >= argument; }, first);
}

}  // namespace ptq::families
