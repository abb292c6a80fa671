// The channel to a server and the typed ends of its services.
#ifndef PTQ_CLIENT_SERVER_CONNECTION_H_
#define PTQ_CLIENT_SERVER_CONNECTION_H_

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "google/bytestream/bytestream.grpc.pb.h"
#include "ptq/v1/blob_store.grpc.pb.h"
#include "ptq/v1/capabilities.grpc.pb.h"
#include "ptq/v1/dataset_service.grpc.pb.h"
#include "ptq/v1/model_service.grpc.pb.h"
#include "ptq/v1/quantization_service.grpc.pb.h"

namespace ptq {

// The services as interfaces, so that tests can put mocks in their places.
struct ServiceStubs {
  std::unique_ptr<v1::QuantizationService::StubInterface> jobs;
  std::unique_ptr<v1::ModelService::StubInterface> models;
  std::unique_ptr<v1::DatasetService::StubInterface> datasets;
  std::unique_ptr<v1::BlobStore::StubInterface> blobs;
  std::unique_ptr<v1::Capabilities::StubInterface> capabilities;
  std::unique_ptr<google::bytestream::ByteStream::StubInterface> bytes;
};

ServiceStubs MakeStubs(const std::shared_ptr<grpc::Channel>& channel);

// kInvalidArgument unless `address` is HOST:PORT (or [IPV6]:PORT) with a port of 1..65535.
absl::Status ValidateServerAddress(const std::string& address);

// Connects lazily: nothing is sent before the first call. Keepalive pings every 60 s find dead
// peers behind firewalls; reconnecting is tried at least every 2 s, because callers do their own
// waiting.
std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address);

}  // namespace ptq

#endif  // PTQ_CLIENT_SERVER_CONNECTION_H_
