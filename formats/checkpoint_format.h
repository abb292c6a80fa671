// A format that a quantized model is written in, and most also read back from.
#ifndef PTQ_FORMATS_CHECKPOINT_FORMAT_H_
#define PTQ_FORMATS_CHECKPOINT_FORMAT_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/cancellation.h"
#include "formats/hashing_writer.h"
#include "formats/quantized_checkpoint.h"

namespace ptq {

// Stateless. All formats derive from the same records; none requantizes.
class CheckpointFormat {
 public:
  virtual ~CheckpointFormat() = default;

  // "gptq": the value of --format.
  virtual std::string name() const = 0;
  // Whether the format can hold a model of these schemes: what can be said before any work is done.
  // kFailedPrecondition naming the module, what stands in the way, and a format that can.
  virtual absl::Status CheckPlan(const ExportPlan& plan) const = 0;
  // Writes the model into `folder`, which exists and holds no other model; what an interrupted call
  // left there is written again. Two blocks in memory at a time. Every file is read
  // back by a decoder of its own and compared with the records before its rename, and the file that
  // makes the folder loadable (config.json) comes last. kFailedPrecondition naming tensor, field
  // and another format if a record does not fit. Digests of the files that hold weights.
  virtual absl::StatusOr<FileDigests> Write(const QuantizedCheckpoint& checkpoint,
                                            const std::string& folder,
                                            const CancellationToken& cancel) const = 0;
  // Reads a folder of this format (of gguf also a file), ours or another program's. kUnimplemented
  // if this format is only written; kInvalidArgument, naming file and field, if the folder is not
  // what it says; kFailedPrecondition if no record can hold what it says.
  virtual absl::StatusOr<std::unique_ptr<QuantizedCheckpoint>> Open(
      const std::string& folder) const = 0;
};

// nullptr if there is none of this name.
const CheckpointFormat* FindCheckpointFormat(const std::string& name);
// The format of the model in the folder `path`, by config.json's quantization_config, or by its
// .gguf file where it has no safetensors weights; `path` may be such a file. kInvalidArgument
// saying what was found otherwise.
absl::StatusOr<const CheckpointFormat*> DetectCheckpointFormat(const std::string& path);

}  // namespace ptq

#endif  // PTQ_FORMATS_CHECKPOINT_FORMAT_H_
