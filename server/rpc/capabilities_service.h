// ptq.v1.Capabilities: what this server can do.
#ifndef PTQ_SERVER_RPC_CAPABILITIES_SERVICE_H_
#define PTQ_SERVER_RPC_CAPABILITIES_SERVICE_H_

#include <string>
#include <vector>

#include "ptq/v1/capabilities.grpc.pb.h"

namespace ptq {

// Immutable.
class CapabilitiesServiceImpl final : public v1::Capabilities::Service {
 public:
  CapabilitiesServiceImpl(const std::vector<std::string>& model_roots, int max_concurrent_jobs);
  grpc::Status GetCapabilities(grpc::ServerContext* context, const google::protobuf::Empty* request,
                               v1::ServerCapabilities* response) override;

 private:
  v1::ServerCapabilities capabilities_;
};

}  // namespace ptq

#endif  // PTQ_SERVER_RPC_CAPABILITIES_SERVICE_H_
