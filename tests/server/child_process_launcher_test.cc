// Real child processes: shell scripts that print, hang, die, flood and leave others behind.
#include "server/jobs/child_process_launcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/file.h"
#include "tests/client/scratch_folder.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

class ChildProcessLauncherTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<WorkerProcess>> Launch(const std::string& script) {
    const std::string path = folder_.Write("worker", "#!/bin/sh\n" + script);
    ::chmod(path.c_str(), 0755);
    return ChildProcessLauncher(path).Launch(
        {folder_.Path("job.json"), folder_.Path("out"), folder_.Path("cache"), LogPath()});
  }
  std::string LogPath() { return folder_.Path("log"); }
  // The next line, or what ReadLine says instead.
  static std::string Line(WorkerProcess& process) {
    const auto line = process.ReadLine(absl::Now() + absl::Seconds(20));
    if (!line.ok()) return absl::StrCat("status ", static_cast<int>(line.status().code()));
    return line->value_or("nothing");
  }
  static bool Exists(const std::string& pid) { return PathExists("/proc/" + pid); }
  static bool AwaitGone(const std::string& pid) {
    for (int i = 0; i < 400 && Exists(pid); ++i) absl::SleepFor(absl::Milliseconds(25));
    return !Exists(pid);
  }

  testing::ScratchFolder folder_;
};

constexpr char kEnded[] = "status 11";  // kOutOfRange

TEST_F(ChildProcessLauncherTest, PassesItsArgumentsAndReadsLinesAndTheLastHalfLine) {
  PTQ_ASSERT_OK_AND_ASSIGN(auto process, Launch("echo \"$@\"; printf half; exit 7"));
  EXPECT_EQ(Line(*process),
            absl::StrCat("run --spec ", folder_.Path("job.json"), " --output ", folder_.Path("out"),
                         " --cache-dir ", folder_.Path("cache")));
  EXPECT_EQ(Line(*process), "half");
  EXPECT_EQ(Line(*process), kEnded);
  const WorkerExit exit = process->Wait();
  EXPECT_EQ(exit.exit_code, 7);
  EXPECT_EQ(exit.signal, 0);
}

TEST_F(ChildProcessLauncherTest, StandardErrorIsAppendedToTheLog) {
  folder_.Write("log", "before\n");
  PTQ_ASSERT_OK_AND_ASSIGN(auto process, Launch("echo words >&2"));
  EXPECT_EQ(Line(*process), kEnded);
  process->Wait();
  PTQ_ASSERT_OK_AND_ASSIGN(const std::string log, ReadFile(LogPath()));
  EXPECT_EQ(log, "before\nwords\n");
}

TEST_F(ChildProcessLauncherTest, AMissingProgramIsAnError) {
  EXPECT_THAT(ChildProcessLauncher("/no/such/worker").Launch({"s", "o", "c", LogPath()}),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("/no/such/worker: No such file")));
}

TEST_F(ChildProcessLauncherTest, InheritsNoDescriptorsAndNoSignalMask) {
  sigset_t blocked, before;
  ::sigemptyset(&blocked);
  ::sigaddset(&blocked, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &blocked, &before);
  auto process = Launch("ls /proc/self/fd | tr '\\n' ' '; echo; grep SigBlk /proc/self/status");
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ASSERT_THAT(process, IsOk());
  EXPECT_EQ(Line(**process), "0 1 2 3 ") << "3 is ls's own";
  EXPECT_THAT(Line(**process), HasSubstr("0000000000000000"));
}

TEST_F(ChildProcessLauncherTest, WaitsNoLongerThanTheDeadline) {
  PTQ_ASSERT_OK_AND_ASSIGN(auto process, Launch("sleep 60"));
  const absl::Time start = absl::Now();
  PTQ_ASSERT_OK_AND_ASSIGN(const auto line, process->ReadLine(start + absl::Milliseconds(200)));
  EXPECT_FALSE(line.has_value());
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(190));
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  process->Kill();
  EXPECT_EQ(process->Wait().signal, SIGKILL);
}

TEST_F(ChildProcessLauncherTest, ARequestToStopIsSigterm) {
  PTQ_ASSERT_OK_AND_ASSIGN(
      auto process,
      Launch("trap 'echo stopped; exit 143' TERM; echo ready; while :; do sleep 0.05; done"));
  EXPECT_EQ(Line(*process), "ready");
  process->RequestStop();
  EXPECT_EQ(Line(*process), "stopped");
  EXPECT_EQ(Line(*process), kEnded);
  EXPECT_EQ(process->Wait().exit_code, 143);
}

TEST_F(ChildProcessLauncherTest, SomebodyElsesSignalIsReported) {
  PTQ_ASSERT_OK_AND_ASSIGN(auto process, Launch("echo $$; kill -SEGV $$; sleep 60"));
  Line(*process);
  EXPECT_EQ(Line(*process), kEnded);
  EXPECT_EQ(process->Wait().signal, SIGSEGV);
}

TEST_F(ChildProcessLauncherTest, AGrandchildThatHoldsThePipeDelaysNothingAndDies) {
  PTQ_ASSERT_OK_AND_ASSIGN(auto process, Launch("sleep 60 & echo $!; exit 0"));
  const absl::Time start = absl::Now();
  const std::string grandchild = Line(*process);
  EXPECT_EQ(Line(*process), kEnded);
  EXPECT_LT(absl::Now() - start, absl::Seconds(30));
  EXPECT_EQ(process->Wait().exit_code, 0);
  EXPECT_TRUE(AwaitGone(grandchild));
}

TEST_F(ChildProcessLauncherTest, AFloodWithoutNewlinesComesInBoundedPieces) {
  PTQ_ASSERT_OK_AND_ASSIGN(auto process, Launch("head -c 3000000 /dev/zero | tr '\\0' x"));
  size_t total = 0;
  while (true) {
    const auto line = process->ReadLine(absl::Now() + absl::Seconds(20));
    if (!line.ok()) break;
    ASSERT_TRUE(line->has_value());
    EXPECT_LE((*line)->size(), (1u << 20) + (1u << 15));
    total += (*line)->size();
  }
  EXPECT_EQ(total, 3000000u);
}

TEST_F(ChildProcessLauncherTest, TheWorkerDiesWithTheThreadThatLaunchedIt) {
  std::string pid;
  // The object is leaked on purpose: its destructor would end the worker too.
  std::thread([&] {
    auto process = Launch("echo $$; exec sleep 60");
    ASSERT_THAT(process, IsOk());
    pid = Line(**process);
    process->release();
  }).join();
  ASSERT_FALSE(pid.empty());
  // Nobody has waited for it, so it stays as a zombie: its state tells.
  std::string state;
  for (int i = 0; i < 400 && state != "Z"; ++i) {
    std::ifstream stat("/proc/" + pid + "/stat");
    std::string number, name;
    stat >> number >> name >> state;
    absl::SleepFor(absl::Milliseconds(25));
  }
  EXPECT_EQ(state, "Z");
}

TEST_F(ChildProcessLauncherTest, AnOrphanIsEndedByItsHandleAndNobodyElse) {
  PTQ_ASSERT_OK_AND_ASSIGN(auto process, Launch("echo up; exec sleep 60"));
  EXPECT_EQ(Line(*process), "up");
  const std::string handle = process->handle();
  const std::string pid = handle.substr(0, handle.find(':'));
  ChildProcessLauncher launcher("unused");
  // Another process that got the same pid later has another start time.
  ASSERT_THAT(launcher.EndOrphan(pid + ":1"), IsOk());
  EXPECT_TRUE(Exists(pid));
  ASSERT_THAT(launcher.EndOrphan(""), IsOk());
  ASSERT_THAT(launcher.EndOrphan(handle), IsOk());
  EXPECT_EQ(process->Wait().signal, SIGKILL);
}

}  // namespace
}  // namespace ptq
