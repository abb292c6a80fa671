// Fisher metrics come back as they were rounded, or not at all.
#include "worker/fisher_files.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "common/file.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::testing::HasSubstr;
using testing::IsOk;
using testing::StatusIs;

constexpr auto kDataLoss = absl::StatusCode::kDataLoss;
const Json kIdentity = {{"tokens", 2048}};

// Symmetric; most elements need more bits than bfloat16 has.
at::Tensor Metric(int64_t size, double offset) {
  const at::Tensor root = at::arange(size * size, at::kFloat).view({size, size}).add(offset).sin();
  return at::mm(root, root.t()).mul(1e-7);
}

class FisherFilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/fisher_files_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    ASSERT_THAT(RemoveTree(folder_), IsOk());
  }
  // Two finished metrics.
  FisherFiles Finished() {
    FisherFiles files(folder_, 2, kIdentity);
    EXPECT_THAT(files.StartOver(), IsOk());
    EXPECT_THAT(files.Write(1, Metric(7, 1)), IsOk());
    EXPECT_THAT(files.Write(0, Metric(7, 0)), IsOk());
    EXPECT_THAT(files.Finish(1.5), IsOk());
    return files;
  }
  std::string Path(const std::string& name) { return JoinPath(folder_, name); }
  void Edit(const std::string& name, const std::function<void(std::string&)>& edit) {
    PTQ_ASSERT_OK_AND_ASSIGN(std::string data, ReadFile(Path(name)));
    edit(data);
    ASSERT_THAT(WriteFileAtomically(Path(name), data), IsOk());
  }
  std::string folder_;
};

TEST_F(FisherFilesTest, MetricsComeBackInTheBitsOfBfloat16) {
  for (const int64_t size : {1, 2, 7, 64}) {
    FisherFiles files(folder_, 1, kIdentity);
    ASSERT_THAT(files.StartOver(), IsOk());
    ASSERT_THAT(files.Write(0, Metric(size, 3)), IsOk());
    ASSERT_THAT(files.Finish(1.5), IsOk());
    PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor metric, files.Read(0));
    EXPECT_EQ(metric.scalar_type(), at::kFloat);
    EXPECT_TRUE(metric.equal(Metric(size, 3).to(at::kBFloat16).to(at::kFloat))) << size;
    EXPECT_TRUE(metric.equal(metric.t())) << size;
  }
}

TEST_F(FisherFilesTest, ALaterRunReadsThem) {
  Finished();
  const FisherFiles files(folder_, 2, kIdentity);
  ASSERT_TRUE(files.Complete());
  EXPECT_EQ(files.Seconds(), 1.5);
  for (const int64_t block : {0, 1}) {
    PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor metric, files.Read(block));
    EXPECT_TRUE(
        metric.equal(Metric(7, static_cast<double>(block)).to(at::kBFloat16).to(at::kFloat)));
  }
}

TEST_F(FisherFilesTest, NothingIsThereBeforeTheLastBlockAndTheManifest) {
  FisherFiles files(folder_, 2, kIdentity);
  EXPECT_FALSE(files.Complete());
  ASSERT_THAT(files.StartOver(), IsOk());
  EXPECT_FALSE(files.Complete());
  ASSERT_THAT(files.Write(1, Metric(7, 1)), IsOk());
  ASSERT_THAT(files.Finish(1.5), IsOk());
  EXPECT_FALSE(files.Complete()) << "one of two blocks";
  ASSERT_THAT(files.Write(0, Metric(7, 0)), IsOk());
  EXPECT_FALSE(FisherFiles(folder_, 2, kIdentity).Complete()) << "no manifest of both";
  ASSERT_THAT(files.Finish(1.5), IsOk());
  EXPECT_TRUE(files.Complete());
  ASSERT_THAT(files.StartOver(), IsOk());
  EXPECT_FALSE(files.Complete());
  EXPECT_FALSE(PathExists(Path("fisher-00000.safetensors")));
}

TEST_F(FisherFilesTest, AnotherIdentityOrModelDoesNotTakeThem) {
  Finished();
  EXPECT_FALSE(FisherFiles(folder_, 2, {{"tokens", 4096}}).Complete());
  EXPECT_FALSE(FisherFiles(folder_, 3, kIdentity).Complete());
}

TEST_F(FisherFilesTest, DamagedFilesAreNamed) {
  const std::string name = "fisher-00001.safetensors";
  const auto damages = std::vector<std::pair<const char*, std::function<void(std::string&)>>>{
      {"a bit of the values", [](std::string& data) { data.back() ^= 1; }},
      {"a bit of the header", [](std::string& data) { data[12] ^= 1; }},
      {"cut", [](std::string& data) { data.resize(data.size() / 2); }},
      {"emptied", [](std::string& data) { data.clear(); }},
      {"longer", [](std::string& data) { data += '\0'; }}};
  for (const auto& [what, damage] : damages) {
    const FisherFiles files = Finished();
    Edit(name, damage);
    EXPECT_TRUE(files.Complete()) << "files are checked when they are read";
    EXPECT_THAT(files.Read(1), StatusIs(kDataLoss, HasSubstr(name))) << what;
    EXPECT_THAT(files.Read(0), IsOk()) << what;
  }
  const FisherFiles files = Finished();
  ASSERT_THAT(CopyFileAtomically(Path("fisher-00000.safetensors"), Path(name)), IsOk());
  EXPECT_THAT(files.Read(1), StatusIs(kDataLoss, HasSubstr(name))) << "another block's";
  ASSERT_THAT(RemoveTree(Path(name)), IsOk());
  EXPECT_THAT(files.Read(1), StatusIs(kDataLoss, HasSubstr(name))) << "missing";
}

TEST_F(FisherFilesTest, ADamagedManifestIsNone) {
  for (const char* text : {"", "{", "[]", "7", "{\"identity\": {\"tokens\": 2048}}"}) {
    Finished();
    Edit("fisher.json", [&](std::string& data) { data = text; });
    const FisherFiles files(folder_, 2, kIdentity);
    EXPECT_FALSE(files.Complete()) << text;
    EXPECT_EQ(files.Seconds(), 0) << text;
  }
}

}  // namespace
}  // namespace ptq
