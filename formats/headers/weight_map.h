// model.safetensors.index.json: which shard each tensor is in.
#ifndef PTQ_FORMATS_HEADERS_WEIGHT_MAP_H_
#define PTQ_FORMATS_HEADERS_WEIGHT_MAP_H_

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace ptq {

// (tensor, file), sorted by tensor, each tensor once.
using WeightMap = std::vector<std::pair<std::string, std::string>>;

// kInvalidArgument naming the tensor: no JSON, no "weight_map" or an empty one, a repeated tensor,
// a file that is not a plain name ending in .safetensors, more than 1,000,000 tensors.
absl::StatusOr<WeightMap> ParseWeightMap(std::string_view json);

// True for the suffixes that PyTorch's pickle checkpoints have.
bool IsPickleName(const std::string& name);

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_WEIGHT_MAP_H_
