#include "proto/algorithm_field.h"

#include "absl/strings/str_replace.h"

namespace ptq {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::OneofDescriptor;

const OneofDescriptor& AlgorithmOneof() {
  return *v1::QuantizationSpec::descriptor()->FindOneofByName("algorithm");
}

}  // namespace

std::string AlgorithmFieldName(const v1::QuantizationSpec& spec) {
  const FieldDescriptor* field =
      spec.GetReflection()->GetOneofFieldDescriptor(spec, &AlgorithmOneof());
  return field == nullptr ? "" : absl::StrReplaceAll(field->name(), {{"_", "-"}});
}

bool SetAlgorithmField(const std::string& name, v1::QuantizationSpec& spec) {
  const FieldDescriptor* field =
      v1::QuantizationSpec::descriptor()->FindFieldByName(absl::StrReplaceAll(name, {{"-", "_"}}));
  if (field == nullptr || field->containing_oneof() != &AlgorithmOneof()) return false;
  spec.GetReflection()->MutableMessage(&spec, field)->Clear();
  return true;
}

}  // namespace ptq
