// What a job reads is hashed beside its work, and what goes wrong with that is told.
#include "worker/input_digests.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "common/sha256.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::IsOk;
using ::ptq::testing::StatusIs;
using ::testing::HasSubstr;

class InputDigestsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "input_digests_XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    ASSERT_THAT(MakeDirectories(JoinPath(root_, "model")), IsOk());
    Write("model/config.json", "{}");
    Write("model/model.safetensors", std::string(9 << 20, 'w'));  // three pieces
    Write("calibration.jsonl", "text");
    spec_.model = JoinPath(root_, "model");
    spec_.calibration = JoinPath(root_, "calibration.jsonl");
  }
  void TearDown() override { ASSERT_THAT(RemoveTree(root_), IsOk()); }

  void Write(const std::string& name, const std::string& data) {
    ASSERT_THAT(WriteFileAtomically(JoinPath(root_, name), data), IsOk());
  }

  std::string root_;
  JobSpec spec_;
  CancellationToken cancel_;
};

TEST_F(InputDigestsTest, NamesWhatTheJobReadsByContent) {
  InputDigests digests(spec_, cancel_);
  PTQ_ASSERT_OK_AND_ASSIGN(const Json inputs, digests.Wait());
  ASSERT_EQ(inputs["model"].size(), 2);
  EXPECT_EQ(inputs["model"][0],
            (Json{{"path", "config.json"}, {"size_bytes", 2}, {"sha256", Sha256Hex("{}")}}));
  EXPECT_EQ(inputs["model"][1]["path"], "model.safetensors");
  EXPECT_EQ(inputs["model"][1]["sha256"], Sha256Hex(std::string(9 << 20, 'w')));
  EXPECT_EQ(inputs["calibration"], (Json{{"size_bytes", 4}, {"sha256", Sha256Hex("text")}}));
  EXPECT_TRUE(inputs["evaluation"].is_null());
  EXPECT_THAT(digests.Check(), IsOk());
  PTQ_ASSERT_OK_AND_ASSIGN(const Json again, digests.Wait());
  EXPECT_EQ(again, inputs);
}

TEST_F(InputDigestsTest, AFolderOrFileThatIsMissingIsNamed) {
  JobSpec spec = spec_;
  spec.model = JoinPath(root_, "nowhere");
  EXPECT_THAT(InputDigests(spec, cancel_).Wait(),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("nowhere")));
  spec = spec_;
  spec.evaluation = JoinPath(root_, "evaluation.txt");
  InputDigests digests(spec, cancel_);
  EXPECT_THAT(digests.Wait(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("evaluation.txt")));
  EXPECT_THAT(digests.Check(), StatusIs(absl::StatusCode::kNotFound, HasSubstr("evaluation.txt")));
}

TEST_F(InputDigestsTest, StopsWhenTheJobIsAskedTo) {
  cancel_.Cancel();
  InputDigests digests(spec_, cancel_);
  EXPECT_THAT(digests.Wait(), StatusIs(absl::StatusCode::kCancelled, HasSubstr("stop")));
}

TEST_F(InputDigestsTest, NobodyHasToWait) {
  Write("model/model.safetensors", "");
  ASSERT_EQ(::truncate(JoinPath(spec_.model, "model.safetensors").c_str(), off_t{64} << 30), 0);
  const InputDigests digests(spec_, cancel_);  // of an hour's work
}

// A large file is still being hashed when it is touched, shortened or replaced.
class InputDigestsChangeTest : public InputDigestsTest,
                               public ::testing::WithParamInterface<int> {};

TEST_P(InputDigestsChangeTest, AFileThatChangesMeanwhileIsDamaged) {
  const std::string path = JoinPath(spec_.model, "model.safetensors");
  ASSERT_EQ(::truncate(path.c_str(), off_t{256} << 20), 0);
  InputDigests digests(spec_, cancel_);
  switch (GetParam()) {
    case 0: {
      const struct timespec times[2] = {{1, 0}, {1, 0}};
      ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
      break;
    }
    case 1:
      ASSERT_EQ(::truncate(path.c_str(), 5), 0);
      break;
    default:
      Write("model/model.safetensors", "another file");
  }
  EXPECT_THAT(digests.Wait(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr(path)));
}

INSTANTIATE_TEST_SUITE_P(All, InputDigestsChangeTest, ::testing::Values(0, 1, 2));

}  // namespace
}  // namespace ptq
