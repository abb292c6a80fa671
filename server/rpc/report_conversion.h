// report.json into QuantizationReport.
#ifndef PTQ_SERVER_RPC_REPORT_CONVERSION_H_
#define PTQ_SERVER_RPC_REPORT_CONVERSION_H_

#include <string>

#include "absl/status/status.h"
#include "ptq/v1/quantization_service.pb.h"

namespace ptq {

// Sets report_json to `json` as it is, and the fields that it fills. A report without evaluation
// leaves those of the evaluation unset. kDataLoss if it is not a report.
absl::Status FillReport(const std::string& json, v1::QuantizationReport& report);

}  // namespace ptq

#endif  // PTQ_SERVER_RPC_REPORT_CONVERSION_H_
