// Which loaders load what a job has written, for its report.
#ifndef PTQ_WORKER_LOADER_REPORT_H_
#define PTQ_WORKER_LOADER_REPORT_H_

#include <string>
#include <vector>

#include "common/json.h"

namespace ptq {

struct WrittenFormat {
  std::string format;  // as --format has it
  std::string folder;
};

// report.json's `loaders`: an object for each format, {format, method, quantized_layers, loaders},
// as FolderCheckToJson gives them. Reads headers and JSON only. A folder that can't be judged has
// an "error" instead, a sentence.
Json JudgeFormats(const std::vector<WrittenFormat>& formats);

}  // namespace ptq

#endif  // PTQ_WORKER_LOADER_REPORT_H_
