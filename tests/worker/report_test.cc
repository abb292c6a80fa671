#include "worker/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/file.h"
#include "common/sha256.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/tiny_llama.h"

namespace ptq {
namespace {

JobPlan PlanOf(const EffectiveScheme& module) {
  JobPlan plan;
  plan.stored_dtype = at::kBFloat16;
  plan.schemes = {module};
  return plan;
}

TEST(ReportTest, SymmetricW4G128IsFourAndAnEighthBits) {
  const SizeFigures sizes =
      ComputeSizes(PlanOf({.module = "m",
                           .out_features = 64,
                           .in_features = 256,
                           .scheme = QuantizationScheme{4, 128, true, ScaleRule::kFullRange}}));
  EXPECT_DOUBLE_EQ(sizes.bits_per_weight, 4.125);
  EXPECT_EQ(sizes.quantized_weights, 64 * 256);
}

TEST(ReportTest, AsymmetricSchemesPayForZeroPoints) {
  const SizeFigures sizes =
      ComputeSizes(PlanOf({.module = "m",
                           .out_features = 64,
                           .in_features = 256,
                           .scheme = QuantizationScheme{4, 128, false, ScaleRule::kFullRange}}));
  EXPECT_DOUBLE_EQ(sizes.bits_per_weight, 4 + 16.0 / 128 + 4.0 / 128);
}

TEST(ReportTest, OneScaleATensorCostsNearlyNothing) {
  const SizeFigures sizes =
      ComputeSizes(PlanOf({.module = "m",
                           .out_features = 64,
                           .in_features = 256,
                           .scheme = QuantizationScheme{8, 0, true, ScaleRule::kFullRange}}));
  EXPECT_DOUBLE_EQ(sizes.bits_per_weight, 8 + 16.0 / (64 * 256));
}

TEST(ReportTest, AbsentFiguresAreNull) {
  BlockResult block;
  block.name = "model.layers.0";
  block.modules.emplace_back().name = "m";
  const Json json = BlockResultToJson(block);
  EXPECT_TRUE(json["loss_first"].is_null());
  EXPECT_TRUE(json["modules"][0]["output_mse"].is_null());
  EXPECT_TRUE(json["modules"][0]["fallback_reason"].is_null());
  EXPECT_TRUE(json["modules"][0]["tokens"].is_null());
  EXPECT_EQ(json["modules"][0]["group_size"], 128);
}

TEST(ReportTest, BlocksThatWereNotTunedInThePrecisionOfTheJobAreCounted) {
  JobPlan plan = PlanOf({.module = "m", .out_features = 64, .in_features = 256, .scheme = {}});
  plan.inspection.config = testing::TinyLlamaConfig();
  plan.spec.algorithm = Algorithm::kAutoRound;
  plan.compute = {.device = at::kCPU, .dtype = at::kBFloat16};
  plan.tuning_precision = TuningPrecision::kFp8;
  BlockResult block;
  block.seconds = 2;
  block.tuning_path = "fused fp8";
  ReportInputs inputs{.plan = plan,
                      .inputs = {},
                      .environment = {},
                      .blocks = {BlockResultToJson(block)},
                      .outside_of_blocks = {},
                      .head = {},
                      .calibration = {},
                      .evaluation = {},
                      .loaders = {},
                      .outputs = {},
                      .warnings = {},
                      .memory = {}};
  EXPECT_EQ(BuildReport(inputs)["warnings"].size(), 0);
  block.tuning_path = "autograd";
  inputs.blocks.push_back(BlockResultToJson(block));
  const Json report = BuildReport(inputs);
  EXPECT_EQ(report["tuning"]["paths"], (Json{{"fused fp8", 1}, {"autograd", 1}}));
  EXPECT_THAT(report["warnings"][0].get<std::string>(),
              ::testing::StartsWith("1 of 2 blocks were tuned without FP8"));

  // All of it by an earlier run, the head too.
  BlockResult head;
  head.seconds = 3;
  inputs.head = BlockResultToJson(head);
  inputs.parts_resumed = 3;
  inputs.total_seconds = 1;
  const Json resumed = BuildReport(inputs);
  EXPECT_EQ(resumed["blocks_resumed"], 2);
  EXPECT_EQ(resumed["timing"]["total_seconds"], 1 + 2 * block.seconds + 3);
}

TEST(FileDigestTest, FolderDigestIsThatOfSortedSha256sumLines) {
  EXPECT_EQ(FolderDigest({{"b", 1, "bb"}, {"a", 1, "aa"}}), Sha256Hex("aa  a\nbb  b\n"));
}

TEST(FileDigestTest, StopsWhenAsked) {
  const std::string folder = ::testing::TempDir();
  ASSERT_THAT(WriteFileAtomically(JoinPath(folder, "digest_me"), "abc"), testing::IsOk());
  CancellationToken cancel;
  PTQ_ASSERT_OK_AND_ASSIGN(const FileDigest digest, DigestFile(folder, "digest_me", cancel));
  EXPECT_EQ(digest.sha256, Sha256Hex("abc"));
  EXPECT_EQ(digest.size_bytes, 3);
  cancel.Cancel();
  EXPECT_EQ(DigestFile(folder, "digest_me", cancel).status().code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace ptq
