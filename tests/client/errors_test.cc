// Codes to exit statuses, google.rpc details to sentences, names of jobs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "client/exit_status.h"
#include "client/resource_names.h"
#include "client/rpc_status.h"
#include "client/server_connection.h"
#include "common/status_util.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::IsOk;
using ::ptq::testing::StatusIs;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

grpc::Status WithDetails(grpc::StatusCode code, const std::string& message,
                         const std::vector<const google::protobuf::Message*>& details) {
  google::rpc::Status rich;
  rich.set_code(code);
  rich.set_message(message);
  for (const auto* detail : details) rich.add_details()->PackFrom(*detail);
  return {code, message, rich.SerializeAsString()};
}

struct CodeCase {
  absl::StatusCode code;
  ExitStatus exit_status;
};

class ExitStatusTest : public ::testing::TestWithParam<CodeCase> {};

TEST_P(ExitStatusTest, FollowsFromTheCode) {
  EXPECT_EQ(ExitStatusFor(absl::Status(GetParam().code, "x")), GetParam().exit_status)
      << StatusCodeName(GetParam().code);
}

INSTANTIATE_TEST_SUITE_P(
    Codes, ExitStatusTest,
    ::testing::Values(CodeCase{absl::StatusCode::kInvalidArgument, ExitStatus::kRefused},
                      CodeCase{absl::StatusCode::kFailedPrecondition, ExitStatus::kRefused},
                      CodeCase{absl::StatusCode::kUnimplemented, ExitStatus::kRefused},
                      CodeCase{absl::StatusCode::kNotFound, ExitStatus::kRefused},
                      CodeCase{absl::StatusCode::kAlreadyExists, ExitStatus::kRefused},
                      CodeCase{absl::StatusCode::kPermissionDenied, ExitStatus::kRefused},
                      CodeCase{absl::StatusCode::kOutOfRange, ExitStatus::kRefused},
                      CodeCase{absl::StatusCode::kUnauthenticated, ExitStatus::kRefused},
                      CodeCase{absl::StatusCode::kUnavailable, ExitStatus::kUnreachable},
                      CodeCase{absl::StatusCode::kDeadlineExceeded, ExitStatus::kUnreachable},
                      CodeCase{absl::StatusCode::kInternal, ExitStatus::kError},
                      CodeCase{absl::StatusCode::kDataLoss, ExitStatus::kError},
                      CodeCase{absl::StatusCode::kResourceExhausted, ExitStatus::kError},
                      CodeCase{absl::StatusCode::kUnknown, ExitStatus::kError},
                      CodeCase{absl::StatusCode::kAborted, ExitStatus::kError},
                      CodeCase{absl::StatusCode::kCancelled, ExitStatus::kInterrupted},
                      CodeCase{absl::StatusCode::kOk, ExitStatus::kDone}));

TEST(ExitStatusTest, LocalDiskErrorsAreErrorsWhateverTheirCode) {
  EXPECT_EQ(ExitStatusFor(LocalError(absl::NotFoundError("x"))), ExitStatus::kError);
  EXPECT_THAT(LocalError(absl::OkStatus()), IsOk());
}

TEST(RpcStatusTest, AnUnreachableServerIsNamedWithoutTheTransportsWords) {
  const absl::Status status = FromRpcStatus(
      {grpc::StatusCode::UNAVAILABLE, "failed to connect to all addresses; last error: grpc"},
      "host:9");
  EXPECT_EQ(ErrorSentence(status),
            "the server at host:9 cannot be reached: start it with `ptqd --data-dir DIR`, or name "
            "another one with --server HOST:PORT or in PTQ_SERVER");
}

TEST(RpcStatusTest, FieldViolationsNameFlags) {
  google::rpc::BadRequest bad;
  auto* violation = bad.add_field_violations();
  violation->set_field("spec.scheme.bits");
  violation->set_description("9 is not in 2..8");
  violation = bad.add_field_violations();
  violation->set_field("spec.rules[2].pattern");
  violation->set_description("matches no module");
  const absl::Status status = FromRpcStatus(
      WithDetails(grpc::StatusCode::INVALID_ARGUMENT, "spec is invalid", {&bad}), "host:9");
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument,
                               "--bits: 9 is not in 2..8; --rule: matches no module"));
}

TEST(RpcStatusTest, ADescriptionThatRepeatsItsFieldIsNotDoubled) {
  google::rpc::BadRequest bad;
  auto* violation = bad.add_field_violations();
  violation->set_field("spec.scheme.group_size");
  violation->set_description("group_size: 100 does not divide 384");
  EXPECT_THAT(
      FromRpcStatus(WithDetails(grpc::StatusCode::INVALID_ARGUMENT, "", {&bad}), "h:9"),
      StatusIs(absl::StatusCode::kInvalidArgument, "--group-size: 100 does not divide 384"));
}

TEST(RpcStatusTest, AnUnknownJobPointsToTheList) {
  google::rpc::ErrorInfo info;
  info.set_reason("RESOURCE_NOT_FOUND");
  const absl::Status status = FromRpcStatus(
      WithDetails(grpc::StatusCode::NOT_FOUND, "there is no quantization job x", {&info}), "h:9");
  EXPECT_EQ(ErrorReason(status), "RESOURCE_NOT_FOUND");
  EXPECT_EQ(ErrorSentence(status), "there is no quantization job x; `ptq list` shows the jobs");
}

TEST(RpcStatusTest, AServersOwnUnavailableKeepsItsMessage) {
  google::rpc::ErrorInfo info;
  info.set_reason("SHUTTING_DOWN");
  EXPECT_THAT(
      ErrorSentence(FromRpcStatus(
          WithDetails(grpc::StatusCode::UNAVAILABLE, "the server is stopping", {&info}), "h:9")),
      AllOf(HasSubstr("the server is stopping"), Not(HasSubstr("cannot be reached"))));
}

TEST(RpcStatusTest, LocalErrorsGetNoAdviceAboutTheServer) {
  EXPECT_EQ(ErrorSentence(absl::InternalError("/tmp/x: no space")), "/tmp/x: no space");
}

struct FieldCase {
  std::string field;
  std::string flag;
};

class FlagForFieldTest : public ::testing::TestWithParam<FieldCase> {};

TEST_P(FlagForFieldTest, NamesTheFlag) {
  EXPECT_EQ(FlagForField(GetParam().field), GetParam().flag) << GetParam().field;
}

INSTANTIATE_TEST_SUITE_P(
    Fields, FlagForFieldTest,
    ::testing::Values(FieldCase{"spec.scheme.bits", "--bits"}, FieldCase{"bits", "--bits"},
                      FieldCase{"spec.calibration.samples", "--samples"},
                      FieldCase{"spec.evaluation.samples", "--evaluation-samples"},
                      FieldCase{"spec.evaluation.window", "--evaluation-window"},
                      FieldCase{"spec.calibration_dataset", "--calibration"},
                      FieldCase{"spec.rules[0].bits", "--rule"}, FieldCase{"rule", "--rule"},
                      FieldCase{"spec.preset", "--preset"},
                      FieldCase{"spec.allow_split_fused_sets", "--allow-split-fused-sets"},
                      FieldCase{"spec.auto_round.iterations", "--iterations"},
                      FieldCase{"spec.auto_round.recipe", "--recipe"},
                      FieldCase{"spec.auto_round.fisher_tokens", "--fisher-tokens"},
                      FieldCase{"fisher_tokens", "--fisher-tokens"},
                      FieldCase{"spec.auto_round.tuning_precision", "--tuning-precision"},
                      FieldCase{"tuning_precision", "--tuning-precision"},
                      FieldCase{"spec.resources.low_memory", "--low-memory"},
                      FieldCase{"spec.output_formats", "--format"},
                      FieldCase{"labels[team]", "--label"}, FieldCase{"request_id", "--request-id"},
                      FieldCase{"source.manifest.model", ""}, FieldCase{"parent", ""}));

TEST(JobNameTest, TheLastPartAndTheFullNameAreTheSameJob) {
  const std::string full = "tenants/default/quantizationJobs/1f-3a";
  EXPECT_EQ(*ResolveJobName("1f-3a"), full);
  EXPECT_EQ(*ResolveJobName(full), full);
  EXPECT_EQ(ShortName(full), "1f-3a");
  EXPECT_EQ(ParentOf(full), "tenants/default");
}

TEST(JobNameTest, OtherNamesAreRefused) {
  for (const std::string name :
       {"", "a b", "../x", "tenants/default/models/m", "tenants/default/quantizationJobs/",
        "tenants//quantizationJobs/x", "a/b"}) {
    SCOPED_TRACE(name);
    EXPECT_THAT(ResolveJobName(name),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("ptq list")));
  }
}

TEST(UuidTest, StableOnesAreEqualForEqualTextAndRandomOnesDiffer) {
  EXPECT_EQ(StableUuid("a"), StableUuid("a"));
  EXPECT_NE(StableUuid("a"), StableUuid("b"));
  EXPECT_NE(RandomUuid(), RandomUuid());
  EXPECT_THAT(RandomUuid(),
              ::testing::MatchesRegex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-"
                                      "[0-9a-f]{12}"));
}

TEST(ServerAddressTest, NeedsHostAndPort) {
  EXPECT_THAT(ValidateServerAddress("127.0.0.1:7433"), IsOk());
  EXPECT_THAT(ValidateServerAddress("[::1]:7433"), IsOk());
  for (const std::string address : {"", "host", "host:", ":1", "host:0", "host:99999", "::1:5"}) {
    SCOPED_TRACE(address);
    EXPECT_THAT(ValidateServerAddress(address),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("HOST:PORT")));
  }
}

}  // namespace
}  // namespace ptq
