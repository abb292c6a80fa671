// Pieces of rows against the whole weight at once, and each method against what it must not lose
// to.
#include "algorithms/vocabulary_quantizer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "algorithms/affine/record_rows.h"
#include "algorithms/rtn/opt_rtn.h"
#include "algorithms/rtn/rtn.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr QuantizationScheme kScheme{4, 64, true};

class VocabularyQuantizerTest : public ::testing::Test {
 protected:
  // More than one piece.
  static constexpr int64_t kRows = 70001;
  static constexpr int64_t kColumns = 256;

  void SetUp() override {
    at::manual_seed(1);
    weight_ = (at::randn({kRows, kColumns}) * 0.1).to(at::kBFloat16);
  }

  absl::StatusOr<QuantizedLinear> Quantize(RowMethod method, const LinearStatistics& statistics,
                                           const QuantizationScheme& scheme = kScheme) {
    pieces_.clear();
    return QuantizeVocabulary(
        {.module = "lm_head",
         .rows = weight_.size(0),
         .columns = weight_.size(1),
         .read = [&](int64_t begin, int64_t count) -> absl::StatusOr<at::Tensor> {
           pieces_.push_back(count);
           return weight_.narrow(0, begin, count);
         },
         .scheme = scheme,
         .stored_dtype = at::kBFloat16,
         .method = method,
         .statistics = statistics,
         .cancel = cancel_,
         .progress = [&](double fraction) { progress_ = fraction; }});
  }
  // Mean of (X (W - Ŵ)ᵀ)², from the Hessian.
  double Error(const AffineQuantizedTensor& record, const at::Tensor& hessian) const {
    const at::Tensor difference = weight_.to(at::kFloat) - Dequantize(record, at::kFloat);
    return (difference.matmul(hessian) * difference).sum().item<double>();
  }

  CancellationToken cancel_;
  at::Tensor weight_;
  std::vector<int64_t> pieces_;
  double progress_ = 0;
};

void ExpectSame(const AffineQuantizedTensor& a, const AffineQuantizedTensor& b) {
  EXPECT_TRUE(a.int_data.equal(b.int_data));
  EXPECT_TRUE(a.scale.equal(b.scale));
  EXPECT_TRUE(a.zero_point.equal(b.zero_point));
  EXPECT_EQ(a.block_size, b.block_size);
  EXPECT_EQ(a.bits, b.bits);
  EXPECT_EQ(a.original_dtype, b.original_dtype);
}

TEST_F(VocabularyQuantizerTest, RtnInPiecesIsRtn) {
  for (const QuantizationScheme scheme :
       {kScheme, QuantizationScheme{8, -1, true}, QuantizationScheme{3, 32, false}}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedLinear quantized,
                             Quantize(RowMethod::kRtn, {}, scheme));
    ASSERT_GT(pieces_.size(), 1u);
    EXPECT_EQ(progress_, 1);
    EXPECT_EQ(quantized.fallback_reason, "");
    ExpectSame(quantized.weight, QuantizeRtn(weight_, at::kBFloat16, scheme));
  }
}

TEST_F(VocabularyQuantizerTest, OptRtnInPiecesIsOptRtn) {
  weight_ = weight_.narrow(1, 0, 64).contiguous();
  weight_ = at::cat({weight_, weight_, weight_, weight_});  // of as many elements
  LinearStatistics statistics;
  statistics.importance = at::rand({64}) + 0.1;
  statistics.tokens = 10;
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedLinear quantized,
                           Quantize(RowMethod::kOptRtn, statistics));
  ASSERT_GT(pieces_.size(), 1u);
  PTQ_ASSERT_OK_AND_ASSIGN(const AffineQuantizedTensor whole,
                           QuantizeOptRtn(weight_.to(at::kFloat), statistics.importance,
                                          at::kBFloat16, kScheme, cancel_));
  ExpectSame(quantized.weight, whole);
}

TEST_F(VocabularyQuantizerTest, GptqCarriesErrorsOver) {
  weight_ = weight_.narrow(0, 0, 300).contiguous();
  const at::Tensor inputs =
      at::randn({2000, 16}).matmul(at::randn({16, kColumns})) + 0.1 * at::randn({2000, kColumns});
  LinearStatistics statistics;
  statistics.hessian = inputs.t().matmul(inputs);
  statistics.importance = statistics.hessian.diagonal().clone();
  statistics.tokens = 2000;
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedLinear gptq, Quantize(RowMethod::kGptq, statistics));
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedLinear opt, Quantize(RowMethod::kOptRtn, statistics));
  EXPECT_EQ(gptq.fallback_reason, "");
  EXPECT_TRUE(gptq.weight.scale.equal(opt.weight.scale));  // both search them
  EXPECT_LT(Error(gptq.weight, statistics.hessian), 0.5 * Error(opt.weight, statistics.hessian));

  statistics.hessian.zero_();
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedLinear fallen, Quantize(RowMethod::kGptq, statistics));
  EXPECT_THAT(fallen.fallback_reason, HasSubstr("opt-rtn"));
  EXPECT_TRUE(fallen.weight.int_data.equal(opt.weight.int_data));
}

TEST_F(VocabularyQuantizerTest, RefusesWhatItCannotDo) {
  weight_ = weight_.narrow(0, 0, 8).clone();
  EXPECT_THAT(Quantize(RowMethod::kRtn, {}, {4, QuantizationScheme::kPerTensor, true}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("lm_head")));
  weight_[3][5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(Quantize(RowMethod::kRtn, {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("NaN")));
  cancel_.Cancel();
  EXPECT_THAT(Quantize(RowMethod::kRtn, {}),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr("stop")));
}

TEST_F(VocabularyQuantizerTest, RowsOfARecordDecodeLikeTheWhole) {
  weight_ = weight_.narrow(0, 0, 10).contiguous();
  PTQ_ASSERT_OK_AND_ASSIGN(const QuantizedLinear quantized, Quantize(RowMethod::kRtn, {}));
  EXPECT_TRUE(Dequantize(RecordRows(quantized.weight, 3, 4))
                  .equal(Dequantize(quantized.weight).narrow(0, 3, 4)));
}

}  // namespace
}  // namespace ptq
