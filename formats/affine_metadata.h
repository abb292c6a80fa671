// What a folder in the affine format says beside its tensors, whoever writes it.
#ifndef PTQ_FORMATS_AFFINE_METADATA_H_
#define PTQ_FORMATS_AFFINE_METADATA_H_

#include <map>
#include <string>

#include "formats/checkpoint_folder.h"
#include "formats/quantized_checkpoint.h"

namespace ptq {

// __metadata__ of every shard: all parameters of the model, or torchao's loader fails.
std::map<std::string, std::string> AffineMetadata(const ExportPlan& plan);
FolderConfig AffineConfig(const ExportPlan& plan);

}  // namespace ptq

#endif  // PTQ_FORMATS_AFFINE_METADATA_H_
