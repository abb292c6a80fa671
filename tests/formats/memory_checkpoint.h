// A quantized checkpoint in memory, for the tests of output formats.
#ifndef PTQ_TESTS_FORMATS_MEMORY_CHECKPOINT_H_
#define PTQ_TESTS_FORMATS_MEMORY_CHECKPOINT_H_

#include <memory>
#include <utility>
#include <vector>

#include "formats/quantized_checkpoint.h"
#include "tests/formats/tiny_checkpoint.h"

namespace ptq::testing {

// Random records for a plan beside its original checkpoint; tests may change them.
class MemoryCheckpoint final : public QuantizedCheckpoint {
 public:
  MemoryCheckpoint(ExportPlan plan, const CheckpointReader& plain)
      : plan_(std::move(plan)), plain_(plain) {
    for (int64_t block = 0; block < plan_.source.config.num_hidden_layers; ++block) {
      blocks_.push_back(RandomBlock(plan_, block));
    }
  }
  const ExportPlan& plan() const override { return plan_; }
  const CheckpointReader& plain() const override { return plain_; }
  absl::StatusOr<std::vector<QuantizedModule>> ReadBlock(int64_t block) const override {
    return blocks_[static_cast<size_t>(block)];
  }
  std::vector<QuantizedModule>& block(size_t index) { return blocks_[index]; }

 private:
  const ExportPlan plan_;
  const CheckpointReader& plain_;
  std::vector<std::vector<QuantizedModule>> blocks_;
};

}  // namespace ptq::testing

#endif  // PTQ_TESTS_FORMATS_MEMORY_CHECKPOINT_H_
