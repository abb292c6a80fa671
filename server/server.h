// ptqd as an object: everything that main.cc starts and that tests start in their own process.
#ifndef PTQ_SERVER_SERVER_H_
#define PTQ_SERVER_SERVER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/jobs/worker_launcher.h"

namespace ptq {

struct ServerOptions {
  // Jobs, blobs, everything that survives. Made if it is not there; one server at a time uses it.
  std::string data_dir;
  // HOST:PORT; port 0 takes any free one. Only loopback hosts, until TLS exists.
  std::string listen = "127.0.0.1:7433";
  // Folders below which clients may name inputs by path. None: uploads only.
  std::vector<std::string> model_roots;
  // Jobs that run at the same time. Each needs the memory of a few decoder blocks.
  int max_concurrent_jobs = 1;
  // Streams that may move blob bytes at the same time; each has a thread and a few MiB.
  int max_byte_streams = 128;
};

// For a program's main, before its first thread: keeps the buffers of streams (1 to 4 MiB each)
// inside the heap, where glibc would map and unmap each, and bounds the number of heaps. Measured:
// an upload's CPU time falls by a third. JobManager's thread gives the heap back when
// it is idle.
void TuneAllocatorForStreams();

class Server {
 public:
  // Recovers the jobs of an earlier server and starts to serve. kInvalidArgument: listen address or
  // model root; kAlreadyExists: the data folder is in use; kUnavailable: the port is.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServerOptions& options,
                                                       std::unique_ptr<WorkerLauncher> launcher);
  // As Stop.
  virtual ~Server() = default;

  // HOST:PORT with the port that was taken.
  virtual const std::string& address() const = 0;
  // Health NOT_SERVING at once; workers stop and their jobs are QUEUED again; then no call is left.
  virtual void Stop() = 0;
};

}  // namespace ptq

#endif  // PTQ_SERVER_SERVER_H_
