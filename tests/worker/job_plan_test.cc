// Which precision a job tunes in: by what it asks for, the device and the model.
#include "worker/job_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using testing::StatusIs;

constexpr TuningPrecision kComputeDtype = TuningPrecision::kComputeDtype;
constexpr TuningPrecision kFp8 = TuningPrecision::kFp8;

absl::StatusOr<TuningPrecision> Resolve(PrecisionChoice choice, TuningRecipe recipe,
                                        at::ScalarType dtype, bool fp8_products) {
  JobSpec spec;
  spec.tuning_precision = choice;
  spec.recipe = recipe;
  ComputeOptions compute;
  compute.dtype = dtype;
  return ResolveTuningPrecision(spec, compute, fp8_products);
}

TEST(TuningPrecisionTest, AutomaticIsFp8WhereTheDeviceHasItAndTheModelIsBfloat16) {
  for (const TuningRecipe recipe :
       {TuningRecipe::kFast, TuningRecipe::kDefault, TuningRecipe::kBest}) {
    const auto resolve = [recipe](at::ScalarType dtype, bool fp8_products) {
      return Resolve(PrecisionChoice::kAuto, recipe, dtype, fp8_products);
    };
    EXPECT_EQ(*resolve(at::kBFloat16, true), kFp8);
    EXPECT_EQ(*resolve(at::kBFloat16, false), kComputeDtype);
    EXPECT_EQ(*resolve(at::kHalf, true), kComputeDtype);
    EXPECT_EQ(*resolve(at::kFloat, true), kComputeDtype);
  }
}

TEST(TuningPrecisionTest, ThePapersRecipeTakesFp8OnlyIfAsked) {
  const TuningRecipe paper = TuningRecipe::kPaper;
  EXPECT_EQ(*Resolve(PrecisionChoice::kAuto, paper, at::kBFloat16, true), kComputeDtype);
  EXPECT_EQ(*Resolve(PrecisionChoice::kFp8, paper, at::kBFloat16, true), kFp8);
}

TEST(TuningPrecisionTest, Bf16IsTheComputeDtype) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf, at::kFloat}) {
    EXPECT_EQ(*Resolve(PrecisionChoice::kBf16, TuningRecipe::kDefault, dtype, true), kComputeDtype);
  }
}

TEST(TuningPrecisionTest, Fp8IsRefusedWithoutItsGpuOrABfloat16Model) {
  const auto resolve = [](at::ScalarType dtype, bool fp8_products) {
    return Resolve(PrecisionChoice::kFp8, TuningRecipe::kDefault, dtype, fp8_products);
  };
  EXPECT_EQ(*resolve(at::kBFloat16, true), kFp8);
  EXPECT_THAT(resolve(at::kBFloat16, false),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(StartsWith("tuning_precision: fp8 needs a GPU"), HasSubstr("cpu"),
                             HasSubstr("choose auto or bf16"))));
  EXPECT_THAT(resolve(at::kHalf, true),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       AllOf(StartsWith("tuning_precision: fp8 needs a bfloat16 model"),
                             HasSubstr("float16;"), HasSubstr("choose auto"))));
}

TEST(TuningPrecisionTest, OtherAlgorithmsHaveNone) {
  JobSpec spec;
  spec.algorithm = Algorithm::kGptq;
  ComputeOptions compute;
  compute.dtype = at::kBFloat16;
  EXPECT_EQ(*ResolveTuningPrecision(spec, compute, true), kComputeDtype);
}

TEST(TuningPrecisionTest, LabelsAreThoseOfTheReport) {
  JobPlan plan;
  plan.compute.dtype = at::kBFloat16;
  EXPECT_EQ(plan.TuningPrecisionLabel(), "bf16");
  plan.compute.dtype = at::kFloat;
  EXPECT_EQ(plan.TuningPrecisionLabel(), "float32");
  plan.compute.dtype = at::kHalf;
  EXPECT_EQ(plan.TuningPrecisionLabel(), "float16");
  plan.tuning_precision = kFp8;
  EXPECT_EQ(plan.TuningPrecisionLabel(), "fp8");
}

}  // namespace
}  // namespace ptq
