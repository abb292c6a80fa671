// HOST:PORT of a listener that must stay on this machine.
#ifndef PTQ_SERVER_LISTEN_ADDRESS_H_
#define PTQ_SERVER_LISTEN_ADDRESS_H_

#include <string>

#include "absl/status/statusor.h"

namespace ptq {

struct ListenAddress {
  std::string host;  // as given, with brackets
  int port = 0;
};

// "127.0.0.1:7433", "[::1]:0", "localhost:7433". kInvalidArgument for anything that is not an
// address with a port, and for a host that others can reach: there is no TLS yet.
absl::StatusOr<ListenAddress> ParseListenAddress(const std::string& text);

}  // namespace ptq

#endif  // PTQ_SERVER_LISTEN_ADDRESS_H_
