#include "server/rpc/capabilities_service.h"

#include "formats/headers/tensor_table.h"
#include "server/jobs/job_submission.h"
#include "server/rpc/byte_stream_service.h"
#include "server/rpc/page_token.h"
#include "worker/spec/job_spec.h"
#include "worker/spec/presets.h"

namespace ptq {

CapabilitiesServiceImpl::CapabilitiesServiceImpl(const std::vector<std::string>& model_roots,
                                                 int max_concurrent_jobs) {
  capabilities_.set_engine_version(ServerVersion());
  for (const char* name : kAlgorithmNames) capabilities_.add_algorithms(name);
  for (const char* name : kRecipeNames) capabilities_.add_recipes(name);
  for (const Preset& preset : Presets()) {
    v1::Preset& entry = *capabilities_.add_presets();
    entry.set_name(preset.name);
    entry.set_description(preset.description);
  }
  for (const char* name : kKQuantNames) capabilities_.add_k_quants(name);
  for (const std::string& type : SupportedModelTypes()) capabilities_.add_model_types(type);
  for (const char* name : kOutputFormatNames) capabilities_.add_output_formats(name);
  for (int bits = 2; bits <= 8; ++bits) capabilities_.add_bits(bits);
  capabilities_.set_max_chunk_bytes(kMaxChunkBytes);
  capabilities_.set_max_page_size(kMaxPageSize);
  for (const std::string& root : model_roots) capabilities_.add_model_roots(root);
  capabilities_.set_max_concurrent_jobs(max_concurrent_jobs);
}

grpc::Status CapabilitiesServiceImpl::GetCapabilities(grpc::ServerContext*,
                                                      const google::protobuf::Empty*,
                                                      v1::ServerCapabilities* response) {
  *response = capabilities_;
  return grpc::Status::OK;
}

}  // namespace ptq
