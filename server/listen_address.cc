#include "server/listen_address.h"

#include <arpa/inet.h>

#include "absl/strings/numbers.h"

namespace ptq {
namespace {

bool IsLoopback(const std::string& host) {
  if (host == "localhost") return true;
  in_addr v4;
  if (::inet_pton(AF_INET, host.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  in6_addr v6;
  if (host.size() > 2 && host.front() == '[' && host.back() == ']' &&
      ::inet_pton(AF_INET6, host.substr(1, host.size() - 2).c_str(), &v6) == 1) {
    return IN6_IS_ADDR_LOOPBACK(&v6);
  }
  return false;
}

}  // namespace

absl::StatusOr<ListenAddress> ParseListenAddress(const std::string& text) {
  const size_t colon = text.rfind(':');
  ListenAddress address;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(text.substr(colon + 1), &address.port) || address.port < 0 ||
      address.port > 65535) {
    return absl::InvalidArgumentError("--listen " + text +
                                      ": expected HOST:PORT, for example 127.0.0.1:7433");
  }
  address.host = text.substr(0, colon);
  if (!IsLoopback(address.host)) {
    return absl::InvalidArgumentError("--listen " + text +
                                      ": ptqd has no TLS yet and would serve strangers in plain "
                                      "text; listen on 127.0.0.1 and let "
                                      "remote users come through an SSH tunnel");
  }
  return address;
}

}  // namespace ptq
