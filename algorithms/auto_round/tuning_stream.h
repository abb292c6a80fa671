// What the tunings of all blocks of a job share on a CUDA device.
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_TUNING_STREAM_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_TUNING_STREAM_H_

#include <c10/core/Device.h>
#include <c10/core/Stream.h>

namespace ptq {

// A stream, because the default one cannot be captured, and memory that graphs captured on it take
// theirs from. The allocator caches memory by stream and by graph: with a stream and a graph's
// memory of its own, each block would allocate all of it anew. Methods throw c10::Error.
class TuningStream {
 public:
  explicit TuningStream(at::Device device);
  // After all graphs; gives back all memory that the allocator holds for nothing.
  ~TuningStream();
  TuningStream(const TuningStream&) = delete;
  TuningStream& operator=(const TuningStream&) = delete;

  // Gives back what the allocator caches for these graphs and others; no graph on it is alive.
  // Another stream would not do: libtorch keeps a workspace of cuBLAS for every one it has seen.
  void ReleaseMemory();

  const c10::Stream& stream() const { return stream_; }
  // For CudaApi::graph_capture_begin.
  void* graph_memory() const { return graph_memory_; }

 private:
  c10::Stream stream_;
  void* graph_memory_;
};

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_TUNING_STREAM_H_
