#include "client/server_connection.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"

namespace ptq {
namespace {

// Reports of large models carry one entry a layer; the transport's own limit is 4 MiB.
constexpr int kMaxReceiveBytes = 256 << 20;

bool IsLoopback(const std::string& address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "localhost:") ||
         absl::StartsWith(address, "[::1]:");
}

}  // namespace

ServiceStubs MakeStubs(const std::shared_ptr<grpc::Channel>& channel) {
  ServiceStubs stubs;
  stubs.jobs = v1::QuantizationService::NewStub(channel);
  stubs.models = v1::ModelService::NewStub(channel);
  stubs.datasets = v1::DatasetService::NewStub(channel);
  stubs.blobs = v1::BlobStore::NewStub(channel);
  stubs.capabilities = v1::Capabilities::NewStub(channel);
  stubs.bytes = google::bytestream::ByteStream::NewStub(channel);
  return stubs;
}

absl::Status ValidateServerAddress(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  const bool has_port = colon != std::string::npos && colon > 0 &&
                        absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 1 &&
                        port <= 65535;
  const std::string host = has_port ? address.substr(0, colon) : "";
  const bool plain_host = host.find_first_of(":/ ") == std::string::npos;
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (has_port && (plain_host || bracketed)) return absl::OkStatus();
  return absl::InvalidArgumentError("--server: '" + address +
                                    "' is not HOST:PORT, for example 127.0.0.1:7433");
}

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2'000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  arguments.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  // A proxy for the outside world must not catch calls to this machine.
  if (IsLoopback(address)) arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace ptq
