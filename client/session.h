// What a command runs with: a console, the server named on the command line, and Ctrl-C.
#ifndef PTQ_CLIENT_SESSION_H_
#define PTQ_CLIENT_SESSION_H_

#include <utility>

#include "client/call_canceller.h"
#include "client/console.h"
#include "client/interrupts.h"
#include "client/quantization_client.h"
#include "client/server_connection.h"

namespace ptq {

// Single-threaded, except for Ctrl-C. All references must outlive it.
class Session {
 public:
  Session(Console& console, InterruptListener& interrupts, ServiceStubs stubs,
          QuantizationClient::Options options)
      : console_(console),
        interrupts_(interrupts),
        stubs_(std::move(stubs)),
        client_(stubs_, canceller_, std::move(options)) {}

  Console& console() { return console_; }
  InterruptListener& interrupts() { return interrupts_; }
  CallCanceller& canceller() { return canceller_; }
  QuantizationClient& client() { return client_; }

 private:
  Console& console_;
  InterruptListener& interrupts_;
  CallCanceller canceller_;
  ServiceStubs stubs_;
  QuantizationClient client_;
};

}  // namespace ptq

#endif  // PTQ_CLIENT_SESSION_H_
