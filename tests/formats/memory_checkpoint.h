// A quantized checkpoint in memory, for the tests of output formats.
#ifndef PTQ_TESTS_FORMATS_MEMORY_CHECKPOINT_H_
#define PTQ_TESTS_FORMATS_MEMORY_CHECKPOINT_H_

#include <map>
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
    for (const PlannedModule& module : plan_.modules) {
      if (module.place == ModulePlace::kBlock) continue;
      const int64_t block = module.place == ModulePlace::kHead
                                ? plan_.source.config.num_hidden_layers
                                : kEmbeddingBlock;
      outside_[block] = {
          {module.module, RandomRecord(module.scheme, module.out_features, module.in_features)}};
    }
  }
  const ExportPlan& plan() const override { return plan_; }
  const CheckpointReader& plain() const override { return plain_; }
  absl::StatusOr<std::vector<QuantizedModule>> ReadBlock(int64_t block) const override {
    if (const auto found = outside_.find(block); found != outside_.end()) return found->second;
    return blocks_[static_cast<size_t>(block)];
  }
  std::vector<QuantizedModule>& block(size_t index) { return blocks_[index]; }

 private:
  const ExportPlan plan_;
  const CheckpointReader& plain_;
  std::vector<std::vector<QuantizedModule>> blocks_;
  std::map<int64_t, std::vector<QuantizedModule>> outside_;  // the embedding's and the head's
};

}  // namespace ptq::testing

#endif  // PTQ_TESTS_FORMATS_MEMORY_CHECKPOINT_H_
