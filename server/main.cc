// ptqd: the control plane. See README.md.
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "common/file.h"
#include "common/logging.h"
#include "common/status_util.h"
#include "server/jobs/child_process_launcher.h"
#include "server/server.h"

namespace {

constexpr int kExitUsage = 2;
constexpr int kExitFailure = 4;

std::string DefaultWorkerPath() {
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  return (self.parent_path() / "ptq-worker").string();
}

// SIGTERM and SIGINT are taken by the main thread's sigwait; every other thread must have them
// blocked, so this comes before any thread exists. A peer that hangs up is an error code, not a
// signal.
sigset_t BlockStopSignals() {
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGTERM);
  ::sigaddset(&signals, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  return signals;
}

int Serve(const ptq::ServerOptions& options, const std::string& worker) {
  const sigset_t signals = BlockStopSignals();
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  auto server = ptq::Server::Start(options, std::make_unique<ptq::ChildProcessLauncher>(worker));
  if (!server.ok()) {
    fprintf(stderr, "ptqd: %s\n", ptq::Message(server.status()).c_str());
    return absl::IsInvalidArgument(server.status()) ? kExitUsage : kExitFailure;
  }
  printf("ptqd listening on %s\n", (*server)->address().c_str());
  fflush(stdout);
  int signal = 0;
  ::sigwait(&signals, &signal);
  PTQ_LOG(Info) << "stopping: running jobs are queued again and continue at the next start";
  (*server)->Stop();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  ptq::TuneAllocatorForStreams();
  ptq::ServerOptions options;
  std::string worker = DefaultWorkerPath();
  CLI::App app(
      "ptqd: post-training quantization as a service.\n"
      "Keeps jobs and uploads in one folder, runs one ptq-worker process for each job, and serves "
      "the API of proto/ptq/v1 to `ptq` and other gRPC clients. SIGTERM stops it: running jobs are "
      "queued again and continue after their last finished block when it is started next.");
  app.option_defaults()->always_capture_default();
  app.add_option("--data-dir", options.data_dir,
                 "Folder for jobs, uploads and results; made if missing; one server at a time")
      ->required();
  app.add_option(
      "--listen", options.listen,
      "HOST:PORT to serve on; port 0 takes any free one; loopback only until TLS exists");
  app.add_option("--model-root", options.model_roots,
                 "Folder below which clients may name models and data by path (repeatable)");
  app.add_option("--worker", worker, "The ptq-worker program");
  app.add_option("--max-jobs", options.max_concurrent_jobs, "Jobs that run at the same time")
      ->check(CLI::Range(1, 64));
  app.set_config("--config", "", "Read options from this file: lines such as max-jobs = 2");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.set_version_flag("--version", std::string("ptqd ") + PTQ_SERVER_VERSION);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ConfigError& error) {
    fprintf(stderr, "ptqd: the configuration file holds something that is no option: %s\n",
            error.what());
    return kExitUsage;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }
  if (::access(worker.c_str(), X_OK) != 0) {
    fprintf(stderr, "ptqd: there is no program at %s; pass --worker PATH of ptq-worker\n",
            worker.c_str());
    return kExitUsage;
  }
  return Serve(options, std::filesystem::absolute(worker).string());
}
