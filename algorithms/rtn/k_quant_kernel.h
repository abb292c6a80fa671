// The search for the scales and codes of one super-block of a K-quant, free of torch so that it
// compiles with its own flags.
#ifndef PTQ_ALGORITHMS_RTN_K_QUANT_KERNEL_H_
#define PTQ_ALGORITHMS_RTN_K_QUANT_KERNEL_H_

#include <cstdint>

#include "common/k_quant.h"

namespace ptq {

struct KQuantSuperBlock {
  float scale;                           // a float16 value
  float minimum;                         // likewise; 0 where symmetric
  int8_t sub_scale[kSuperBlock / 16];    // by group
  int8_t sub_minimum[kSuperBlock / 16];  // likewise; 0 where symmetric
  int8_t codes[kSuperBlock];             // signed: u - 2^(bits-1)
};

// Chooses all of it for 256 weights so that sum i (value - w)^2 is small, i = `importance` > 0. By
// group: the best of some ranges, each improved by a weighted fit of a line through its codes. Then
// over the super-block, from several float16 scales: the best integer scales around what the groups
// ask for, and the least-squares float16 scales of these, until the error no longer falls. The same
// bits on every machine. Weights are finite.
void SearchKQuant(KQuant type, const float* weights, const float* importance,
                  KQuantSuperBlock* result);

}  // namespace ptq

#endif  // PTQ_ALGORITHMS_RTN_K_QUANT_KERNEL_H_
