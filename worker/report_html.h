// report.html: the report as one page for people, from report.json's content. No network, no script
// library, plots as inline SVG, light and dark.
#ifndef PTQ_WORKER_REPORT_HTML_H_
#define PTQ_WORKER_REPORT_HTML_H_

#include <string>

#include "common/json.h"

namespace ptq {

// `report` is report.json as the pipeline writes it. Besides the documented fields it draws
//   blocks[].loss_curve                     [loss of step 0, 1, ...], may be absent or empty
//   evaluation.quantized.kld_histogram      {"log10_min": -8, "log10_max": 2, "counts": [...]}:
//   positions
//                                           by log10 of their KLD, in equal bins; values outside
//                                           the range are counted in the outermost bins; may be
//                                           absent
//   model {name, architecture, block_count, parameters}, engine_version, device
// Absent or null parts are left out of the page; text is escaped.
std::string RenderHtmlReport(const Json& report);

}  // namespace ptq

#endif  // PTQ_WORKER_REPORT_HTML_H_
