#include "worker/baseline_cache.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <string>

#include "common/file.h"
#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::IsOk;

class BaselineCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "baseline_cache_XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  void TearDown() override { ASSERT_THAT(RemoveTree(root_), IsOk()); }
  std::string root_;
};

TEST_F(BaselineCacheTest, GivesBackTheSameBits) {
  const BaselineCache cache(JoinPath(root_, "new/folder"));
  const at::Tensor hidden = at::randn({3, 5, 7}).to(at::kBFloat16);
  EXPECT_FALSE(cache.Find("0a"));
  ASSERT_THAT(cache.Store("0a", hidden), IsOk());
  const auto found = cache.Find("0a");
  ASSERT_TRUE(found);
  EXPECT_EQ(found->scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::equal(*found, hidden));
  EXPECT_FALSE(cache.Find("0b"));
}

TEST_F(BaselineCacheTest, ADamagedEntryIsAMiss) {
  const BaselineCache cache(root_);
  ASSERT_THAT(cache.Store("0a", at::randn({4, 4})), IsOk());
  std::fstream file(JoinPath(root_, "baseline-0a.safetensors"),
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-1, std::ios::end);
  file.put('\x55');
  file.close();
  EXPECT_FALSE(cache.Find("0a"));
}

TEST_F(BaselineCacheTest, ATruncatedEntryIsAMiss) {
  const BaselineCache cache(root_);
  ASSERT_THAT(WriteFileAtomically(JoinPath(root_, "baseline-0a.safetensors"), "short"), IsOk());
  EXPECT_FALSE(cache.Find("0a"));
}

TEST_F(BaselineCacheTest, WithoutAFolderNothingIsKept) {
  const BaselineCache cache("");
  EXPECT_FALSE(cache.Accepts(1));
  ASSERT_THAT(cache.Store("0a", at::ones({2})), IsOk());
  EXPECT_FALSE(cache.Find("0a"));
}

TEST_F(BaselineCacheTest, VeryLargeEntriesAreNotKept) {
  const BaselineCache cache(root_);
  EXPECT_TRUE(cache.Accepts(BaselineCache::kMaxEntryBytes));
  EXPECT_FALSE(cache.Accepts(BaselineCache::kMaxEntryBytes + 1));
}

}  // namespace
}  // namespace ptq
