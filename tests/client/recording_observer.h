// Remembers what a transfer reported.
#ifndef PTQ_TESTS_CLIENT_RECORDING_OBSERVER_H_
#define PTQ_TESTS_CLIENT_RECORDING_OBSERVER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "client/transfer_observer.h"

namespace ptq::testing {

class RecordingObserver : public TransferObserver {
 public:
  void OnBegin(const std::string& title, int64_t total_bytes, bool) override {
    titles.push_back(title);
    total = total_bytes;
    done = 0;
  }
  void OnBytes(int64_t bytes) override { done += bytes; }
  void OnEnd() override { ++ended; }
  void OnNote(const std::string& note) override { notes.push_back(note); }

  std::vector<std::string> titles;
  std::vector<std::string> notes;
  int64_t total = 0;  // of the latest stage
  int64_t done = 0;
  int ended = 0;
};

}  // namespace ptq::testing

#endif  // PTQ_TESTS_CLIENT_RECORDING_OBSERVER_H_
