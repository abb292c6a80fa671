// Auto-Round's learning rates and batches (auto_round 0.16.1, sign_round/sign_sgd.py).
#ifndef PTQ_ALGORITHMS_AUTO_ROUND_SCHEDULE_H_
#define PTQ_ALGORITHMS_AUTO_ROUND_SCHEDULE_H_

#include <cstdint>
#include <vector>

namespace ptq {

// The rate where none is asked for: 1 / iterations, twice that for long runs (1000 steps and more)
// of layers with 3 bits or fewer.
double DefaultLearningRate(int64_t iterations, int bits);

// rate · (1 - k / iterations) for k = 0 .. iterations - 1. iterations >= 1.
std::vector<float> LinearDecay(double rate, int64_t iterations);

// Indices of `samples` samples for `iterations` batches, [iterations · batch] row by row. Each
// epoch is a fresh permutation, cut into batches in order; what is left when less than a batch
// remains is dropped. 1 <= batch <= samples. The same seed gives the same order on every platform.
std::vector<int64_t> BatchOrder(int64_t samples, int64_t batch, int64_t iterations, uint64_t seed);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_SCHEDULE_H_
