// What this process needed at most, and giving back what it no longer needs.
#ifndef PTQ_WORKER_PROCESS_MEMORY_H_
#define PTQ_WORKER_PROCESS_MEMORY_H_

#include <cstdint>

namespace ptq {

// VmHWM of this process; 0 where /proc does not say.
int64_t HostPeakBytes();
// Returns free heap pages to the system. Between blocks: their weights come and go in large pieces.
void ReleaseFreeHeap();

}  // namespace ptq

#endif  // PTQ_WORKER_PROCESS_MEMORY_H_
