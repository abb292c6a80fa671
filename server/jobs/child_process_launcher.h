// Workers as child processes of ptqd.
#ifndef PTQ_SERVER_JOBS_CHILD_PROCESS_LAUNCHER_H_
#define PTQ_SERVER_JOBS_CHILD_PROCESS_LAUNCHER_H_

#include <memory>
#include <string>

#include "server/jobs/worker_launcher.h"

namespace ptq {

// Thread-safe. Each worker leads its own process group, gets no descriptor of ours but its standard
// three, no shell and no argument from a client; the kernel kills it when the thread that launched
// it dies, so a killed server leaves no writer behind.
class ChildProcessLauncher final : public WorkerLauncher {
 public:
  explicit ChildProcessLauncher(std::string worker_path) : worker_path_(std::move(worker_path)) {}

  absl::StatusOr<std::unique_ptr<WorkerProcess>> Launch(const WorkerCommand& command) override;
  absl::Status EndOrphan(const std::string& handle) override;

 private:
  const std::string worker_path_;
};

}  // namespace ptq

#endif  // PTQ_SERVER_JOBS_CHILD_PROCESS_LAUNCHER_H_
