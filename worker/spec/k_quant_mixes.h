// llama.cpp's mixes of K-quants (llama_tensor_get_type_impl in src/llama-quant.cpp), by rules over
// module names. The special cases of single architectures and of eight experts are left out.
#ifndef PTQ_WORKER_SPEC_K_QUANT_MIXES_H_
#define PTQ_WORKER_SPEC_K_QUANT_MIXES_H_

#include <cstdint>
#include <string>
#include <vector>

namespace ptq {

// Whether a mix spends more bits on `block`: in the first and the last eighth, and in every third
// block between (use_more_bits).
bool UsesMoreBits(int64_t block, int64_t block_count);

// The rules of the preset `name`, as --rule has them, for a model of so many blocks:
//   Q2_K    v Q4_K; attention's output and the MLPs' last layers Q3_K
//   Q3_K_M  v Q5_K in the first two blocks, else Q4_K; the MLPs' last layers Q5_K in the first
//           sixteenth, else Q4_K; attention's output Q4_K
//   Q4_K_S  v Q5_K in the first four blocks; the MLPs' last layers Q5_K in the first eighth
//   Q4_K_M  v and the MLPs' last layers Q6_K where UsesMoreBits
//   Q5_K_M  the same
// Where q, k and v are one layer: Q4_K in Q3_K_M, Q5_K in Q4_K_M, Q6_K in Q5_K_M. Experts' last
// layers as those of MLPs. Empty for other names.
std::vector<std::string> KQuantMixRules(const std::string& name, int64_t block_count);

}  // namespace ptq

#endif  // PTQ_WORKER_SPEC_K_QUANT_MIXES_H_
