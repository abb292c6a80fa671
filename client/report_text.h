// report.json and job messages as text for people.
#ifndef PTQ_CLIENT_REPORT_TEXT_H_
#define PTQ_CLIENT_REPORT_TEXT_H_

#include <string>

#include "common/json.h"
#include "ptq/v1/capabilities.pb.h"
#include "ptq/v1/quantization_service.pb.h"

namespace ptq {

// Before and after in a few lines: perplexity, KL divergence, top-1 agreement, size, bits per
// weight. What the report lacks is left out; "" if it has none of it.
std::string ReportSummary(const Json& report);

// The summary, then the recipe, the calibration, blocks, the layers with the largest errors, which
// loaders load the result, times and warnings.
std::string ReportDetails(const Json& report);

// One job in "key: value" lines.
std::string JobDetails(const v1::QuantizationJob& job);

// "auto-round paper W4G128": what a job does, in a few words. The default recipe goes unnamed.
std::string SpecSummary(const v1::QuantizationSpec& spec);

std::string CapabilitiesDetails(const v1::ServerCapabilities& capabilities);

}  // namespace ptq

#endif  // PTQ_CLIENT_REPORT_TEXT_H_
