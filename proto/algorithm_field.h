// The oneof `algorithm` of a QuantizationSpec by the names of the command line: the field
// auto_round is "auto-round". Found by reflection, so that a new algorithm is a new field and
// nothing else.
#ifndef PTQ_PROTO_ALGORITHM_FIELD_H_
#define PTQ_PROTO_ALGORITHM_FIELD_H_

#include <string>

#include "ptq/v1/quantization_spec.pb.h"

namespace ptq {

// "" if none is set.
std::string AlgorithmFieldName(const v1::QuantizationSpec& spec);
// Sets the field, its options unset. False if the API has no such field.
bool SetAlgorithmField(const std::string& name, v1::QuantizationSpec& spec);

}  // namespace ptq

#endif  // PTQ_PROTO_ALGORITHM_FIELD_H_
