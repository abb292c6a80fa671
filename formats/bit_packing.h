// Codes of 2..8 bits as a dense stream: element i takes bits [i*b, (i+1)*b) of a row, least
// significant first, in 32-bit words that the last element may not fill. GPTQ, AutoRound and
// compressed-tensors share it; they differ in which dimension is packed and which way it lies.
#ifndef PTQ_FORMATS_BIT_PACKING_H_
#define PTQ_FORMATS_BIT_PACKING_H_

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace ptq {

// 32-bit words for a row of `count` codes.
inline int64_t PackedWords(int64_t count, int bits) { return (count * bits + 31) / 32; }

// `values` is int8 [R, C], contiguous, on the CPU; each value + offset must lie in 0..2^bits-1.
at::Tensor PackRows(const at::Tensor& values, int bits, int offset);            // int32 [R, words]
at::Tensor PackRowsTransposed(const at::Tensor& values, int bits, int offset);  // int32 [words, R]

// The inverse: int8 [R, columns], each code - offset, modulo 256. `words` has PackedWords(columns)
// words a row: int32 [R, words], or [words, R] for the transposed one.
at::Tensor UnpackRows(const at::Tensor& words, int64_t columns, int bits, int offset);
at::Tensor UnpackRowsTransposed(const at::Tensor& words, int64_t columns, int bits, int offset);

// AWQ's GEMM layout of 4-bit codes: eight rows share a word, whose nibbles are rows 0 2 4 6 1 3
// 5 7. int8 [R, C], R a multiple of 8, to int32 [C, R/8] and back.
at::Tensor PackAwq(const at::Tensor& values, int offset);
at::Tensor UnpackAwq(const at::Tensor& words, int offset);

}  // namespace ptq

#endif  // PTQ_FORMATS_BIT_PACKING_H_
