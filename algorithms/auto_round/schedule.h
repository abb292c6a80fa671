// Learning rates and batches: Auto-Round's (auto_round 0.16.1, sign_round/sign_sgd.py) and those of
// the learned-scale recipe (docs/tuning.md).
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

// The learned-scale recipe's: sums to half of this whatever the number of iterations. 1 for 30 and
// more, .7 at 20, .6 at 15, .5 for 12 and fewer, linear in between.
double LearnedScalePeak(int64_t iterations);

// peak / iterations · (1 + cos(pi k / iterations)) / 2 for k = 0 .. iterations - 1. iterations
// >= 1.
std::vector<float> CosineDecay(double peak, int64_t iterations);

// Adam's 1 / (1 - decay^(k+1)) for k = 0 .. iterations - 1. 0 < decay < 1.
std::vector<float> MomentCorrections(double decay, int64_t iterations);

// Indices of `samples` samples for `iterations` batches, [iterations · batch] row by row. Each
// epoch is a fresh permutation, cut into batches in order; what is left when less than a batch
// remains is dropped. 1 <= batch <= samples. The same seed gives the same order on every platform.
std::vector<int64_t> BatchOrder(int64_t samples, int64_t batch, int64_t iterations, uint64_t seed);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_AUTO_ROUND_SCHEDULE_H_
