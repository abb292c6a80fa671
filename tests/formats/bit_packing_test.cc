// Packed codes against golden digests, which other programs' packers gave, and against a stream
// that is put together bit by bit.
#include "formats/bit_packing.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "common/sha256.h"

namespace ptq {
namespace {

std::string Digest(const at::Tensor& tensor) {
  const at::Tensor dense = tensor.contiguous();
  return Sha256Hex({static_cast<const char*>(dense.const_data_ptr()), dense.nbytes()});
}

// N = 32, K = 64, G = 2; unsigned.
at::Tensor GoldenCodes() {
  at::Tensor codes = at::empty({32, 64}, at::kInt);
  for (int n = 0; n < 32; ++n) {
    for (int k = 0; k < 64; ++k) codes[n][k] = (7 * n + 3 * k + (n * k) % 5) % 16;
  }
  return codes;
}
at::Tensor GoldenZeros() {
  at::Tensor zeros = at::empty({32, 2}, at::kInt);
  for (int n = 0; n < 32; ++n) {
    for (int g = 0; g < 2; ++g) zeros[n][g] = 1 + (n + 3 * g) % 15;
  }
  return zeros;
}
// For other widths.
at::Tensor GoldenCodes(int bits) {
  const at::Tensor rows = at::arange(32, at::kInt).unsqueeze(1);
  return (GoldenCodes() * 37 + rows).remainder(1 << bits);
}
at::Tensor GoldenZeros(int bits) { return (GoldenZeros() * 5).remainder((1 << bits) - 1) + 1; }

at::Tensor Bytes(const at::Tensor& codes) { return codes.to(at::kByte).view(at::kChar); }

TEST(BitPackingTest, CompressedTensorsGolden) {
  const at::Tensor codes = (GoldenCodes() - 8).to(at::kChar);
  const at::Tensor zeros = (GoldenZeros() - 8).to(at::kChar);
  const at::Tensor packed = PackRows(codes, 4, 8);
  EXPECT_EQ(packed.sizes(), at::IntArrayRef({32, 8}));
  EXPECT_EQ(Digest(packed), "d1a75cdd2eb1df72ac48a919820955f11c441f44fb677c4d95df03627394cb7e");
  EXPECT_EQ(Digest(PackRowsTransposed(zeros.t().contiguous(), 4, 8)),
            "4e7f2f2f46242d02b6a73eb4732e54028009518d0581b11cd5794f1cf938a26f");
}

TEST(BitPackingTest, GptqGolden) {
  const at::Tensor codes = (GoldenCodes() - 8).to(at::kChar);
  const at::Tensor zeros = (GoldenZeros() - 8).to(at::kChar).t().contiguous();
  EXPECT_EQ(Digest(PackRowsTransposed(codes, 4, 8)),
            "5376485908923a4af2b74f0a9b4b4e70fc86bac2620b7e9dc04f9b0d124833ea");
  EXPECT_EQ(Digest(PackRows(zeros, 4, 7)),
            "511d934055992179914b1ee5883bed25230a71ab1c862a372b7313a5de46af78");
  EXPECT_EQ(Digest(PackRows(zeros, 4, 8)),
            "0095481154486c0df35a5e9fb503b9f4a19b04ff2551978433efd602bbdc2350");
}

TEST(BitPackingTest, GptqGoldenOfOtherWidths) {
  struct Golden {
    int bits;
    const char* weights;
    const char* zeros;
  };
  for (const Golden& golden :
       {Golden{2, "d745b6a637cb35edbbdff792800be6d82ae2db658cb7b16abcfe8b07bcef8d01",
               "5d920b90c26e00e773250793df0b44172547b7e035ee1970cde178c2e31c1eea"},
        Golden{3, "6643e87d0017159f071c01eb7f87fcdb35e8844a635ac27c0709d1261d21a153",
               "b4a72667e47759127a9aece016642d6c7377c1f21751895e6ee43c91ef452f36"},
        Golden{8, "8fbff488ad4f0e3ffe68832e56db55b3b466f13706e0acea94cee8d32fc90551",
               "2094cc2bae1358c96f446d73f985f9d105c6dbb8831b701f3a348336ddc8e235"}}) {
    const at::Tensor zeros = Bytes(GoldenZeros(golden.bits) - 1).t().contiguous();
    EXPECT_EQ(Digest(PackRowsTransposed(Bytes(GoldenCodes(golden.bits)), golden.bits, 0)),
              golden.weights)
        << golden.bits;
    EXPECT_EQ(Digest(PackRows(zeros, golden.bits, 0)), golden.zeros) << golden.bits;
  }
}

TEST(BitPackingTest, AwqGolden) {
  EXPECT_EQ(Digest(PackAwq((GoldenCodes() - 8).to(at::kChar), 8)),
            "128253bdb4f7069cdf74d600868bb9c360eafb08331093fb146dae692a71632a");
  EXPECT_EQ(Digest(PackAwq((GoldenZeros() - 8).to(at::kChar), 8)),
            "7331da78a91c084bcc0edef0e5cda5a548d8886007600aaf2e45408d18411a16");
}

// Bit j of element i is bit i * bits + j of its row.
at::Tensor BitByBit(const at::Tensor& codes, int bits) {
  const int64_t rows = codes.size(0);
  const int64_t columns = codes.size(1);
  const int64_t width = (columns * bits + 31) / 32;
  std::vector<uint32_t> words(static_cast<size_t>(rows * width), 0);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < columns; ++i) {
      const int code = codes[row][i].item<int>();
      for (int j = 0; j < bits; ++j) {
        const int64_t bit = i * bits + j;
        const uint32_t value = static_cast<uint32_t>(code >> j & 1);
        words[static_cast<size_t>(row * width + bit / 32)] |= value << (bit % 32);
      }
    }
  }
  at::Tensor result = at::empty({rows, width}, at::kInt);
  std::memcpy(result.mutable_data_ptr<int32_t>(), words.data(), result.nbytes());
  return result;
}

TEST(BitPackingTest, EveryWidthIsTheStreamAndComesBack) {
  at::manual_seed(1);
  for (int bits = 2; bits <= 8; ++bits) {
    // Rows that end inside a word, inside a group of eight, and more rows than a tile.
    for (const int64_t columns : {1, 7, 32, 45, 96}) {
      SCOPED_TRACE(::testing::Message() << bits << " bits, " << columns << " columns");
      const int middle = 1 << (bits - 1);
      const at::Tensor codes = at::randint(0, 2 * middle, {19, columns}, at::kInt);
      const at::Tensor signed_codes = (codes - middle).to(at::kChar);
      const at::Tensor expected = BitByBit(codes, bits);
      const at::Tensor rows = PackRows(signed_codes, bits, middle);
      const at::Tensor transposed = PackRowsTransposed(signed_codes, bits, middle);
      EXPECT_TRUE(rows.equal(expected));
      EXPECT_TRUE(transposed.equal(expected.t()));
      EXPECT_TRUE(UnpackRows(rows, columns, bits, middle).equal(signed_codes));
      EXPECT_TRUE(UnpackRowsTransposed(transposed, columns, bits, middle).equal(signed_codes));
    }
  }
}

TEST(BitPackingTest, AwqComesBack) {
  at::manual_seed(2);
  for (const int64_t rows : {8, 136, 256}) {
    const at::Tensor codes = at::randint(-8, 8, {rows, 21}, at::kChar);
    EXPECT_TRUE(UnpackAwq(PackAwq(codes, 8), 8).equal(codes)) << rows;
  }
}

}  // namespace
}  // namespace ptq
