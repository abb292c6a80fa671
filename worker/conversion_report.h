// report.json of a conversion: what was read, what was written, and who loads it. Nothing is
// measured, so there are no figures of accuracy.
#ifndef PTQ_WORKER_CONVERSION_REPORT_H_
#define PTQ_WORKER_CONVERSION_REPORT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "common/json.h"
#include "formats/quantized_checkpoint.h"
#include "worker/file_digest.h"
#include "worker/spec/job_spec.h"

namespace ptq {

struct ConversionReportInputs {
  const JobSpec& spec;
  const ExportPlan& plan;     // of the model that was read
  std::string source_format;  // "gptq"
  Json inputs;                // InputDigests
  Json environment;           // JobIdentity::environment
  Json loaders;               // JudgeFormats
  std::vector<FileDigest> outputs;
  double load_seconds = 0;
  double export_seconds = 0;
  double total_seconds = 0;
  int64_t host_peak_bytes = 0;
};

// {engine_version, finished, device, environment, model, conversion: {source: {format, bytes},
// results: [{format, bytes}]}, loaders, size: {quantized_weights, bits_per_weight}, timing, memory,
// warnings, blocks: [{name, modules: [{name, bits, group_size, symmetric}]}], skipped_modules,
// spec, inputs, outputs, result_digest}: the keys of a quantization's report where they mean the
// same. Bytes are those of the files with weights.
Json BuildConversionReport(const ConversionReportInputs& inputs);

}  // namespace ptq

#endif  // PTQ_WORKER_CONVERSION_REPORT_H_
