// A reader of records' values against the records decoded at once.
#include "worker/dequantized_reader.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "algorithms/rtn/rtn.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/tiny_llama.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

TEST(DequantizedReaderTest, GivesTheRecordsValuesAndAllElseAsItIs) {
  testing::InMemoryCheckpoint plain;
  at::manual_seed(3);
  // More rows than fit into one piece.
  plain.tensors["head"] = at::randn({70001, 256}).to(at::kBFloat16);
  plain.tensors["norm"] = at::randn({256});
  const AffineQuantizedTensor record =
      QuantizeRtn(plain.tensors["head"], at::kBFloat16, {4, 64, false});
  DequantizedReader reader(plain);
  reader.Replace("head", [&]() -> absl::StatusOr<AffineQuantizedTensor> { return record; });
  PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor head, reader.Read("head"));
  const at::Tensor expected = Dequantize(record, at::kBFloat16);
  EXPECT_TRUE(head.equal(expected));
  EXPECT_FALSE(head.equal(plain.tensors["head"]));
  PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor norm, reader.Read("norm"));
  EXPECT_TRUE(norm.equal(plain.tensors["norm"]));
  // Bytes from the middle of a row on, over the end of a piece.
  const int64_t begin = 65000 * 512 + 100, size = 1000 * 512;
  at::Tensor bytes = at::empty({size / 2}, at::kBFloat16);
  ASSERT_THAT(reader.ReadBytes("head", begin, size, bytes.data_ptr()), IsOk());
  EXPECT_TRUE(bytes.equal(expected.flatten().narrow(0, begin / 2, size / 2)));
}

TEST(DequantizedReaderTest, NamesTheTensorOfABadRecord) {
  testing::InMemoryCheckpoint plain;
  plain.tensors["head"] = at::randn({8, 64});
  DequantizedReader reader(plain);
  reader.Replace("head", [&]() -> absl::StatusOr<AffineQuantizedTensor> {
    return QuantizeRtn(at::randn({4, 64}), at::kFloat, {4, 32, true});
  });
  EXPECT_THAT(reader.Read("head"), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("head")));
}

}  // namespace
}  // namespace ptq
