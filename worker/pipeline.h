// One job from the first weight to the report: load, observe and quantize block by block, export,
// evaluate.
#ifndef PTQ_WORKER_PIPELINE_H_
#define PTQ_WORKER_PIPELINE_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "algorithms/block_quantizer.h"
#include "common/cancellation.h"
#include "formats/checkpoint_reader.h"
#include "formats/record_folder.h"
#include "formats/token_dataset.h"
#include "models/block_loader.h"
#include "models/decoder_model.h"
#include "observers/observed_block.h"
#include "worker/baseline_cache.h"
#include "worker/dequantized_reader.h"
#include "worker/event_writer.h"
#include "worker/fisher_files.h"
#include "worker/host_staging.h"
#include "worker/input_digests.h"
#include "worker/job_folder.h"
#include "worker/job_parts.h"
#include "worker/job_plan.h"
#include "worker/memory_plan.h"
#include "worker/report.h"
#include "worker/write_behind.h"

namespace ptq {

// Single job. Everything that is borrowed must outlive it.
//
// A resumed run keeps no activations of the earlier one: it reads the finished blocks' records back
// and runs the chains through those blocks again, with the micro-batches that each was made with
// and so to the same bits. A run whose GPU was too small for a block does the same with itself, and
// goes on with halves. That costs two forward passes a finished block, a small part of what
// quantizing it took, and saves writing two copies of the calibration set's hidden states after
// every block.
class Pipeline {
 public:
  Pipeline(const JobPlan& plan, InputDigests& inputs, JobFolder& folder, const BaselineCache& cache,
           EventWriter& events, const CancellationToken& cancel,
           QuantizerFactory make_quantizer = MakeBlockQuantizer)
      : plan_(plan),
        inputs_(inputs),
        folder_(folder),
        cache_(cache),
        events_(events),
        cancel_(cancel),
        make_quantizer_(std::move(make_quantizer)) {}

  // Leaves the finished folder and returns the result's digest. On any error, kCancelled included,
  // the folder is one from which the same job continues. `load_seconds` were spent before.
  absl::StatusOr<std::string> Run(double load_seconds);

 private:
  static constexpr int64_t kFisherPass = -1;

  absl::Status Load();
  // Fills memory_: the sizes of an earlier run, or those that fit.
  absl::Status PlanJobMemory();
  absl::Status KeepMicroBatches();
  // Calibration windows and the chains in front of the first block.
  absl::Status LoadCalibration();
  // The metrics that blocks are tuned by, unless an earlier run left them. `chains_begin`: the
  // chains are in front of the first block, and lend the pass their embedding.
  absl::Status ObserveFisher(bool chains_begin);
  absl::Status QuantizeBlocks();
  // After `status` of a block, or of the Fisher pass: if the device's memory ran out, halves
  // micro-batches and frees what can be freed, observer_ too. Any other error is returned, and one
  // with the peak after kMostHalvings of the same block.
  absl::Status TakeLessMemory(int64_t index, const absl::Status& status);
  // That, and new chains in front of the first block.
  absl::Status BeginAgain(int64_t index, const absl::Status& status);
  absl::Status OutOfDeviceMemory(const std::string& what) const;
  // Moves both chains behind a block of an earlier run; kDataLoss if its records can't be read.
  absl::Status ReplayBlock(int64_t index);
  absl::Status QuantizeOneBlock(int64_t index);
  // The embedding, where a rule names it: in every run, since its record needs no calibration.
  absl::Status WriteEmbedding();
  // The head likewise, behind the last block: for the folder it is block block_count().
  absl::Status QuantizeHead();
  // Blocks, and the head if it is quantized.
  int64_t part_count() const { return model_->block_count() + (head_scheme_ != nullptr ? 1 : 0); }
  // The model as it is read with the embedding and head that are quantized; nullptr: it is model_.
  const DecoderModel* WithQuantizedEmbedding() const;
  const DecoderModel* WithQuantizedHead() const;
  // Waits for a slot and starts to write the block behind the work on the next ones.
  absl::Status WriteBlock(int64_t index, BlockResult result, std::vector<QuantizedModule> modules);
  // Makes the folder's state one that later runs believe.
  absl::Status Identify();
  // The block that is worked on after block `index`, for the loader.
  int64_t BlockAfter(int64_t index) const;
  // The figures of the report for each quantized layer.
  absl::StatusOr<std::vector<ModuleResult>> MeasureModules(const ObservedBlock& observed,
                                                           const QuantizedBlock& quantized,
                                                           const std::vector<at::Tensor>& weights);
  // Gives `observed` its metric; one that is damaged is computed again.
  absl::Status ReadFisher(int64_t index, ObservedBlock& observed);
  // Whether the records are the shards of an output format.
  bool IsAffineAskedFor() const;
  // The records' folder, where they are kept.
  absl::Status OpenRecords();
  // The path of a file of the records' folder, within the job's.
  std::string RecordPath(const std::string& name) const;
  // Every output format out of the records. The result's files.
  absl::StatusOr<std::vector<FileDigest>> WriteFormats();
  absl::StatusOr<Json> EvaluateResult();
  std::vector<std::optional<QuantizationScheme>> SchemesOf(const DecoderBlock& block) const;
  absl::StatusOr<std::vector<at::Tensor>> ReadWeights(int64_t index,
                                                      const DecoderBlock& block) const;

  const JobPlan& plan_;
  InputDigests& inputs_;
  JobFolder& folder_;
  const BaselineCache& cache_;
  EventWriter& events_;
  const CancellationToken& cancel_;
  const QuantizerFactory make_quantizer_;

  std::unique_ptr<SafetensorsCheckpointReader> reader_;
  std::unique_ptr<DecoderModel> model_;
  const EffectiveScheme* embedding_scheme_ = nullptr;  // nullptr: it keeps its dtype
  const EffectiveScheme* head_scheme_ = nullptr;
  std::unique_ptr<DequantizedReader> dequantized_;
  std::unique_ptr<DecoderModel> quantized_outside_;  // of that reader
  MemoryPlan memory_;
  int64_t failed_ = kFisherPass;      // what the device's memory was too small for last
  int halvings_ = 0;                  // on its account
  std::vector<std::string> lowered_;  // a sentence for each halving of this job
  std::unique_ptr<BlockLoader> loader_;
  std::unique_ptr<RecordFolder> records_;
  std::string records_path_;  // of their folder, within the job's; "": it is the job's
  std::unique_ptr<BlockQuantizer> quantizer_;
  std::unique_ptr<BlockInputObserver> observer_;  // none without calibration data
  at::Tensor calibration_windows_;                // likewise; the held-out ones last
  std::unique_ptr<FisherFiles> fisher_;           // none: blocks are tuned by the squared error
  at::Tensor evaluation_windows_;                 // undefined: no evaluation
  int64_t fisher_tokens_ = 0;
  int64_t fisher_host_peak_bytes_ = 0;
  std::optional<ReconstructionError> input_error_;  // in front of the next block
  int64_t parts_resumed_ = 0;                       // blocks and head of an earlier run
  std::vector<std::string> warnings_;
  double advance_seconds_ = 0;  // of the chains behind the last block: counted with the next one
  double load_seconds_ = 0;
  double fisher_seconds_ = 0;
  double earlier_fisher_seconds_ = 0;  // of an earlier run
  double export_seconds_ = 0;
  double evaluate_seconds_ = 0;
  FileDigests outer_digests_;     // of the shards beside the blocks, within the records' folder
  std::string embedding_digest_;  // of its record's file
  // The last members: what they work with, `records_`, `folder_` and `reader_`, outlives them.
  std::unique_ptr<HostStaging> staging_;
  WriteBehind outer_writing_;             // the shards beside the blocks
  std::unique_ptr<WriteBehind> writing_;  // the blocks
};

}  // namespace ptq

#endif  // PTQ_WORKER_PIPELINE_H_
