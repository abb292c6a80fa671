#include "server/jobs/child_process_launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/logging.h"
#include "common/status_macros.h"

namespace ptq {
namespace {

constexpr size_t kMaxLineBytes = 1 << 20;
constexpr absl::Duration kPollInterval = absl::Milliseconds(50);

// When the process started, in clock ticks since boot: with the pid it names a process for good.
// Empty if there is no such process or it has ended.
std::string ProcessStartTime(pid_t pid) {
  // Files in /proc say that they are empty, so ReadFile would believe it.
  std::ifstream file(absl::StrFormat("/proc/%d/stat", pid));
  std::string stat;
  if (!std::getline(file, stat)) return "";
  // The second field is "(name)", and the name may hold spaces and brackets.
  const size_t name_end = stat.rfind(')');
  if (name_end == std::string::npos) return "";
  size_t begin = name_end + 2;
  if (begin < stat.size() && (stat[begin] == 'Z' || stat[begin] == 'X')) return "";
  for (int field = 3; field < 22 && begin != std::string::npos + 1; ++field) {
    begin = stat.find(' ', begin) + 1;
  }
  return stat.substr(begin, stat.find(' ', begin) - begin);
}

class ChildProcess final : public WorkerProcess {
 public:
  ChildProcess(pid_t pid, int output_fd)
      : pid_(pid), output_fd_(output_fd), start_time_(ProcessStartTime(pid)) {}

  ~ChildProcess() override {
    if (!reaped_) {
      Kill();
      Wait();
    }
    ::close(output_fd_);
  }

  std::string handle() const override { return absl::StrFormat("%d:%s", pid_, start_time_); }
  std::string description() const override { return absl::StrFormat("pid %d", pid_); }

  absl::StatusOr<std::optional<std::string>> ReadLine(absl::Time deadline) override {
    while (true) {
      if (auto line = TakeLine()) return line;
      if (end_of_output_) {
        if (!buffer_.empty()) return std::exchange(buffer_, "");
        return absl::OutOfRangeError("the worker's output has ended");
      }
      // A process that the worker left behind may hold the pipe open: the worker's own end counts.
      const bool ended = TryReap();
      const absl::Duration wait =
          ended ? absl::ZeroDuration() : std::min(kPollInterval, deadline - absl::Now());
      if (!ended && wait <= absl::ZeroDuration()) return std::nullopt;
      pollfd poller{output_fd_, POLLIN, 0};
      const int ready = ::poll(&poller, 1, static_cast<int>(absl::ToInt64Milliseconds(wait)));
      if (ready < 0 && errno != EINTR) return ErrnoStatus(errno, "poll");
      if (ready > 0) {
        FillBuffer();
      } else if (ended) {
        end_of_output_ = true;
      }
    }
  }

  void RequestStop() override {
    if (!reaped_) ::kill(pid_, SIGTERM);
  }

  void Kill() override {
    // The group outlives its leader while members live, so this is right after Wait too; the pid
    // cannot have been given to another group before the leader is reaped.
    if (!reaped_) ::kill(-pid_, SIGKILL);
  }

  WorkerExit Wait() override {
    while (!reaped_) {
      int status = 0;
      if (::waitpid(pid_, &status, 0) == pid_) {
        SetExit(status);
      } else if (errno != EINTR) {
        PTQ_LOG(Error) << "waitpid: " << ::strerror(errno);
        reaped_ = true;
      }
    }
    return exit_;
  }

 private:
  std::optional<std::string> TakeLine() {
    const size_t end = buffer_.find('\n', scanned_);
    if (end == std::string::npos) {
      scanned_ = buffer_.size();
      if (buffer_.size() < kMaxLineBytes) return std::nullopt;
      // A line that never ends: hand out what is there, the parser will refuse it.
      scanned_ = 0;
      return std::exchange(buffer_, "");
    }
    std::string line = buffer_.substr(0, end);
    buffer_.erase(0, end + 1);
    scanned_ = 0;
    return line;
  }

  void FillBuffer() {
    char chunk[16384];
    const ssize_t count = ::read(output_fd_, chunk, sizeof(chunk));
    if (count > 0) {
      buffer_.append(chunk, static_cast<size_t>(count));
    } else if (count == 0 || (errno != EINTR && errno != EAGAIN)) {
      end_of_output_ = true;
    }
  }

  bool TryReap() {
    int status = 0;
    if (!reaped_ && ::waitpid(pid_, &status, WNOHANG) == pid_) SetExit(status);
    return reaped_;
  }

  void SetExit(int status) {
    reaped_ = true;
    if (WIFSIGNALED(status)) {
      exit_.signal = WTERMSIG(status);
    } else {
      exit_.exit_code = WEXITSTATUS(status);
    }
    // Nothing that the worker started may go on writing.
    ::kill(-pid_, SIGKILL);
  }

  const pid_t pid_;
  const int output_fd_;
  const std::string start_time_;
  std::string buffer_;
  size_t scanned_ = 0;
  bool end_of_output_ = false;
  bool reaped_ = false;
  WorkerExit exit_;
};

// Runs in the forked child: async-signal-safe calls only. On failure writes errno to `error_fd`.
[[noreturn]] void ExecWorker(const char* path, char* const* arguments, char* const* environment,
                             int output_fd, int log_fd, int error_fd, pid_t parent) {
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() == parent) {  // else it died before the line above
    const int null_fd = ::open("/dev/null", O_RDONLY);
    // error_fd becomes 3, close-on-exec; everything above goes.
    if (null_fd >= 0 && ::dup2(null_fd, 0) == 0 && ::dup2(output_fd, 1) == 1 &&
        ::dup2(log_fd, 2) == 2 && ::dup3(error_fd, 3, O_CLOEXEC) == 3) {
      error_fd = 3;
      ::close_range(4, ~0U, 0);
      ::execve(path, arguments, environment);
    }
  }
  const int error = errno;
  // Nothing can be done if even this fails: the exit code tells.
  if (::write(error_fd, &error, sizeof(error)) < 0) ::_exit(126);
  ::_exit(127);
}

// Descriptors made here must be above the ones that the child puts in place.
int MoveAboveStandard(int fd) {
  if (fd < 0 || fd > 3) return fd;
  const int moved = ::fcntl(fd, F_DUPFD_CLOEXEC, 4);
  ::close(fd);
  return moved;
}

struct Descriptor {
  int fd = -1;
  Descriptor() = default;
  explicit Descriptor(int value) : fd(value) {}
  Descriptor(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

absl::Status MakePipe(Descriptor& read_end, Descriptor& write_end) {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  read_end.fd = MoveAboveStandard(fds[0]);
  write_end.fd = MoveAboveStandard(fds[1]);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerProcess>> ChildProcessLauncher::Launch(
    const WorkerCommand& command) {
  std::vector<std::string> words = {
      worker_path_,       "run",         "--spec",         command.spec_path, "--output",
      command.output_dir, "--cache-dir", command.cache_dir};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);

  Descriptor output_read, output_write, error_read, error_write;
  PTQ_RETURN_IF_ERROR(MakePipe(output_read, output_write));
  PTQ_RETURN_IF_ERROR(MakePipe(error_read, error_write));
  Descriptor log(MoveAboveStandard(::open(
      command.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0644)));
  if (log.fd < 0) return ErrnoStatus(errno, command.log_path);

  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return ErrnoStatus(errno, "fork");
  if (pid == 0) {
    ExecWorker(worker_path_.c_str(), arguments.data(), ::environ, output_write.fd, log.fd,
               error_write.fd, parent);
  }
  ::setpgid(pid, pid);  // both sides do it: whoever comes first
  ::close(std::exchange(error_write.fd, -1));
  auto process = std::make_unique<ChildProcess>(pid, std::exchange(output_read.fd, -1));
  int error = 0;
  ssize_t count;
  do {
    count = ::read(error_read.fd, &error, sizeof(error));
  } while (count < 0 && errno == EINTR);
  if (count > 0) {
    process->Wait();
    return absl::InternalError(absl::StrFormat("cannot start %s: %s; see ptqd's --worker",
                                               worker_path_, ::strerror(error)));
  }
  return process;
}

absl::Status ChildProcessLauncher::EndOrphan(const std::string& handle) {
  const size_t colon = handle.find(':');
  const pid_t pid = static_cast<pid_t>(::atoi(handle.c_str()));
  if (colon == std::string::npos || pid <= 1) return absl::OkStatus();
  const std::string start_time = handle.substr(colon + 1);
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
  while (!start_time.empty() && ProcessStartTime(pid) == start_time) {
    if (absl::Now() > deadline) {
      return absl::UnavailableError(absl::StrFormat(
          "a worker of an earlier ptqd (pid %d) does not end, even by SIGKILL", pid));
    }
    ::kill(-pid, SIGKILL);
    ::kill(pid, SIGKILL);
    absl::SleepFor(absl::Milliseconds(20));
  }
  return absl::OkStatus();
}

}  // namespace ptq
