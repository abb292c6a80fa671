// The parts of report.html with a line or a cell a layer.
#ifndef PTQ_WORKER_REPORT_HTML_LAYERS_H_
#define PTQ_WORKER_REPORT_HTML_LAYERS_H_

#include <string>

#include "common/json.h"

namespace ptq {

// Each is a section of the page, "" where `report` has nothing for it.
std::string ErrorAgainstRtn(const Json& report);
std::string BitsMap(const Json& report);
// How calibration tokens were shared out among the experts of each block.
std::string ExpertTokens(const Json& report);
std::string ModuleTable(const Json& report);
std::string OutsideOfBlocks(const Json& report);

}  // namespace ptq

#endif  // PTQ_WORKER_REPORT_HTML_LAYERS_H_
