// report.json: what a job did, module by module, and what it cost.
#ifndef PTQ_WORKER_REPORT_H_
#define PTQ_WORKER_REPORT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/json.h"
#include "common/quantization_scheme.h"
#include "observers/observed_block.h"
#include "worker/file_digest.h"
#include "worker/job_plan.h"
#include "worker/memory_plan.h"

namespace ptq {

// One quantized linear layer. Errors are of its outputs over a sample of the calibration tokens
// (observers/output_error.h), X being the layer's input in the full-precision block fed by the
// quantized chain; none without calibration data.
struct ModuleResult {
  std::string name;
  QuantizationScheme scheme;
  std::optional<double> output_mse;      // mean((X W - X Ŵ)²)
  std::optional<double> relative_error;  // that over mean((X W)²)
  std::optional<double> rtn_output_mse;  // of rtn by the same scheme
  std::optional<int64_t> tokens;  // calibration tokens that reached it (ObservedBlock::tokens)
  std::optional<double> damping;  // QuantizedLinear::damping
  std::string fallback_reason;    // "": the asked algorithm made it
};

struct BlockResult {
  std::string name;
  double seconds = 0;  // what the block took of the job's time: the next four
  double load_seconds = 0;
  double observe_seconds = 0;
  double quantize_seconds = 0;
  double export_seconds = 0;  // waiting for earlier shards to be written, copying to the host
  double search_seconds = 0;  // in quantize_seconds: the search for scales before tuning
  std::optional<double> step_seconds;  // of one iteration of tuning, once warmed up
  std::string tuning_path;             // which way iterations went; "": none were made
  double write_seconds = 0;            // of the shard, behind the work on the next blocks
  MicroBatches micro_batches;          // that it was made with
  int64_t fisher_tokens = 0;  // that the metric of the loss is the mean over; 0: squared error
  // Of the quantized chain in front of this block; none before anything is quantized, or without
  // held-out samples.
  std::optional<ReconstructionError> input_error;
  std::optional<double> loss_first;
  std::optional<double> loss_best;
  std::vector<float> loss_curve;  // empty where the algorithm has no loss
  std::vector<ModuleResult> modules;
};

// report.json's `model` {name, architecture, block_count, parameters}; `path` is the folder as the
// job was given it, or a .gguf file.
Json DescribeModel(const std::string& path, const ModelConfig& config);

// {name, bits, group_size, symmetric, output_mse, ...}: an element of `modules`, and of
// `outside_of_blocks`.
Json ModuleResultToJson(const ModuleResult& module);

// An element of report.json's `blocks`, and what a block's manifest keeps of it for a resumed run.
Json BlockResultToJson(const BlockResult& block);

// What the report says of the calibration data: {samples, tokens, error_tokens, ...}, null without
// any. `blocks` are all of them, as BlockResultToJson gives them. Adds a warning where more data
// would help.
Json SummarizeCalibration(const JobSpec& spec, const std::vector<Json>& blocks,
                          std::vector<std::string>* warnings);

// "name", "scheme" (the name of a K-quant), "bits", "group_size", "symmetric".
Json DescribeScheme(const std::string& module, const QuantizationScheme& scheme);

// Bits of a weight's record with scales of `scale_bits`: codes, scales and zero points, packed.
int64_t RecordBits(const QuantizationScheme& scheme, int64_t out_features, int64_t in_features,
                   int64_t scale_bits);

struct SizeFigures {
  int64_t before_bytes = 0;  // all tensors of the checkpoint
  int64_t after_bytes = 0;   // the same with quantized weights at their logical size
  int64_t quantized_weights = 0;
  double bits_per_weight = 0;  // codes, scales and zero points over quantized weights
};

// Logical sizes: bits a code, a scale (16 bits; the weight's own dtype under torchao's rule) a
// group, a code-sized zero point a group where asymmetric. How a format stores them is its own
// affair.
SizeFigures ComputeSizes(const JobPlan& plan);

struct ReportInputs {
  const JobPlan& plan;
  Json inputs;       // InputDigests
  Json environment;  // JobIdentity::environment
  std::vector<Json> blocks;
  // Quantized outside of the blocks, as ModuleResultToJson has them.
  std::vector<Json> outside_of_blocks;
  Json head;         // BlockResultToJson of the head, for its times; null if it is not quantized
  Json calibration;  // SummarizeCalibration
  Json evaluation;   // or null
  Json loaders;      // JudgeFormats
  std::vector<FileDigest> outputs;
  std::vector<std::string> warnings;  // beside the plan's and those of fallbacks
  int64_t parts_resumed = 0;          // blocks of an earlier run, and behind them the head
  // Of this run. Phases of blocks are summed over all runs from `blocks`, and so is the total.
  double load_seconds = 0;
  double fisher_seconds = 0;
  double export_seconds = 0;
  double evaluate_seconds = 0;
  double total_seconds = 0;
  int64_t host_peak_bytes = 0;
  int64_t fisher_host_peak_bytes = 0;  // the peak until the Fisher pass was over; 0: there was none
  int64_t device_peak_bytes = 0;       // in tensors
  int64_t device_used_peak_bytes = 0;  // CudaPeakUsedBytes
  MemoryPlan memory;
};

Json BuildReport(const ReportInputs& inputs);

// The job spec without the paths of its inputs: their content counts, not where it lies.
Json SpecWithoutPaths(const JobSpec& spec);

}  // namespace ptq

#endif  // PTQ_WORKER_REPORT_H_
