// Megabytes a second of one upload over loopback, digest checked and durable before the reply.
//
// upload_benchmark [--megabytes 1024] [--rounds 3] [--data-dir DIR] [--server HOST:PORT]
// Prints one JSON object: the rate of each round, their median, the resident memory of the process
// before and after, the CPU time a gigabyte (it matters when others use the machine), and how fast
// the same folder takes plain writes with an fsync every 64 MiB: on a slow disk that is the limit,
// so run it on a tmpfs (/dev/shm) to see the server's. Exits 1 below 400 MB/s.
#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/file.h"
#include "common/json.h"
#include "common/sha256.h"
#include "google/bytestream/bytestream.grpc.pb.h"
#include "server/jobs/child_process_launcher.h"
#include "server/server.h"

namespace ptq {
namespace {

constexpr size_t kChunk = 1 << 20;
constexpr double kTarget = 400;  // MB/s

int64_t ResidentKilobytes() {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, 6, "VmRSS:") == 0) return std::atoll(line.c_str() + 6);
  }
  return 0;
}

// User and system time of this process, client and server together.
double CpuSeconds() {
  rusage usage;
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// One chunk, repeated with a counter in it, stands for the whole file.
std::string Chunk(uint64_t seed, size_t index) {
  static const std::string noise = [] {
    std::mt19937_64 random(1);
    std::string bytes(kChunk, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    return bytes;
  }();
  std::string chunk = noise;
  const std::string mark = absl::StrCat(seed, "/", index);
  chunk.replace(0, mark.size(), mark);
  return chunk;
}

double Upload(const std::string& address, uint64_t seed, size_t chunks, double* cpu_seconds) {
  Sha256 digest;
  for (size_t i = 0; i < chunks; ++i) digest.Update(Chunk(seed, i));
  const std::string hash = digest.FinishHex();
  auto stub = google::bytestream::ByteStream::NewStub(
      grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  google::bytestream::WriteResponse response;
  google::bytestream::WriteRequest request;
  const double cpu_start = CpuSeconds();
  const absl::Time start = absl::Now();
  auto writer = stub->Write(&context, &response);
  for (size_t i = 0; i < chunks; ++i) {
    if (i == 0) {
      request.set_resource_name(
          absl::StrFormat("tenants/default/uploads/%08x-0000-4000-8000-000000000000/blobs/%s/%d",
                          seed, hash, chunks * kChunk));
    } else {
      request.clear_resource_name();
    }
    request.set_write_offset(static_cast<int64_t>(i * kChunk));
    *request.mutable_data() = Chunk(seed, i);
    request.set_finish_write(i + 1 == chunks);
    if (!writer->Write(request)) break;
  }
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  *cpu_seconds += CpuSeconds() - cpu_start;
  if (!status.ok() || response.committed_size() != static_cast<int64_t>(chunks * kChunk)) {
    fprintf(stderr, "upload failed: %s\n", status.error_message().c_str());
    return 0;
  }
  return static_cast<double>(chunks * kChunk) / 1e6 / seconds;
}

double PlainWrite(const std::string& folder, size_t chunks) {
  const std::string path = JoinPath(folder, "plain");
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  const absl::Time start = absl::Now();
  for (size_t i = 0; fd >= 0 && i < chunks; ++i) {
    const std::string chunk = Chunk(0, i);
    if (::write(fd, chunk.data(), chunk.size()) < 0) break;
    if (i % 64 == 63) ::fdatasync(fd);
  }
  ::fdatasync(fd);
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  ::close(fd);
  ::unlink(path.c_str());
  return static_cast<double>(chunks * kChunk) / 1e6 / seconds;
}

int Main(const std::string& data_dir, std::string address, size_t megabytes, int rounds) {
  const std::string folder = absl::StrCat(data_dir, "/ptq-upload-benchmark-", ::getpid());
  std::unique_ptr<Server> server;
  if (address.empty()) {
    ServerOptions options;
    options.data_dir = folder;
    options.listen = "127.0.0.1:0";
    auto started = Server::Start(options, std::make_unique<ChildProcessLauncher>("/bin/false"));
    if (!started.ok()) {
      fprintf(stderr, "%s\n", started.status().ToString().c_str());
      return 1;
    }
    server = *std::move(started);
    address = server->address();
  }
  Json result = Json::object();
  result["idle_rss_kb"] = ResidentKilobytes();
  MakeDirectories(folder).IgnoreError();
  std::vector<double> rates;
  std::vector<double> plain_rates;
  double cpu_seconds = 0;
  const auto seed = static_cast<uint64_t>(absl::ToUnixMillis(absl::Now()) & 0xffffff);
  for (int round = 0; round < rounds; ++round) {
    plain_rates.push_back(PlainWrite(folder, megabytes));
    rates.push_back(Upload(address, seed + static_cast<uint64_t>(round), megabytes, &cpu_seconds));
  }
  result["plain_write_mb_per_s"] = plain_rates;
  result["upload_mb_per_s"] = rates;
  std::sort(rates.begin(), rates.end());
  const double median = rates[rates.size() / 2];
  result["upload_median_mb_per_s"] = median;
  // Both ends together; when others use the machine too this says more than the rate.
  result["cpu_seconds_per_gb"] =
      cpu_seconds * 1e9 / (static_cast<double>(rounds) * static_cast<double>(megabytes * kChunk));
  result["rss_after_kb"] = ResidentKilobytes();
  if (server != nullptr) server->Stop();
  RemoveTree(folder).IgnoreError();
  printf("%s", DumpJsonPretty(result).c_str());
  return median >= kTarget ? 0 : 1;
}

}  // namespace
}  // namespace ptq

int main(int argc, char** argv) {
  ptq::TuneAllocatorForStreams();
  std::string data_dir = "/tmp";
  std::string server;
  size_t megabytes = 1024;
  int rounds = 3;
  CLI::App app("Measures one upload over loopback");
  app.add_option("--data-dir", data_dir, "Folder on the disk to measure");
  app.add_option("--server", server, "A running ptqd to measure instead of one of its own");
  app.add_option("--megabytes", megabytes, "Size of the blob in MiB")
      ->check(CLI::Range(1, 1 << 16));
  app.add_option("--rounds", rounds, "Uploads")->check(CLI::Range(1, 100));
  CLI11_PARSE(app, argc, argv);
  return ptq::Main(data_dir, server, megabytes, rounds);
}
