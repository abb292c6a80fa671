// A job in this process, with someone who reads its events as they come.
#ifndef PTQ_TESTS_WORKER_WATCHED_RUN_H_
#define PTQ_TESTS_WORKER_WATCHED_RUN_H_

#include <unistd.h>

#include <cstdio>
#include <functional>
#include <string>
#include <thread>

#include "worker/run_job.h"

namespace ptq::testing {

// The job's exit status; `on_event` gets every line that it writes, in a thread of its own.
inline int RunWatched(const std::string& spec_path, const std::string& output,
                      const std::function<void(const std::string&)>& on_event) {
  int ends[2];
  if (::pipe(ends) != 0) return -1;
  std::thread reader([&] {
    std::FILE* lines = ::fdopen(ends[0], "r");
    char line[1 << 16];
    while (std::fgets(line, sizeof(line), lines) != nullptr) on_event(line);
    std::fclose(lines);
  });
  CancellationToken cancel;
  int status = -1;
  {
    EventWriter events(ends[1], [&cancel] { cancel.Cancel(); });
    status = RunJob({.spec_path = spec_path, .output = output, .cache_dir = ""}, events, cancel);
  }
  ::close(ends[1]);
  reader.join();
  return status;
}

}  // namespace ptq::testing

#endif  // PTQ_TESTS_WORKER_WATCHED_RUN_H_
