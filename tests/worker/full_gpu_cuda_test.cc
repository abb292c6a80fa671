// A GPU that others fill while a job runs: it goes on with less. Needs an NVIDIA GPU: label gpu.
#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "algorithms/cuda/cuda_runtime.h"
#include "common/file.h"
#include "common/json.h"
#include "formats/safetensors_writer.h"
#include "tests/formats/tiny_checkpoint.h"
#include "tests/testing/status_matchers.h"
#include "tests/worker/watched_run.h"

namespace ptq {
namespace {

using ::ptq::testing::IsOk;
using ::testing::HasSubstr;

// All that is free, down to the smallest piece that libtorch takes of a device.
std::vector<at::Tensor> TakeAllMemory() {
  std::vector<at::Tensor> taken;
  for (int64_t bytes = int64_t{1} << 34; bytes >= int64_t{1} << 21;) {
    try {
      taken.push_back(at::empty({bytes}, at::device(at::kCUDA).dtype(at::kByte)));
    } catch (const c10::Error&) {
      bytes /= 2;
    }
  }
  return taken;
}

class FullGpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_THAT(LoadCuda(), IsOk());
    folder_ = ::testing::TempDir() + "full_gpu";
    ASSERT_THAT(RemoveTree(folder_), IsOk());
    ASSERT_THAT(testing::WriteTinyCheckpoint(folder_ + "/model", /*tied=*/false), IsOk());
    at::manual_seed(3);
    const at::Tensor ids = at::randint(0, 50, {80, 64}, at::kLong);
    ASSERT_THAT(WriteSafetensors(folder_ + "/ids.safetensors",
                                 std::vector<NamedTensor>{{"input_ids", ids}}, {})
                    .status(),
                IsOk());
  }
  void TearDown() override { EXPECT_THAT(RemoveTree(folder_), IsOk()); }

  int Run(const std::string& output, const Json& changes,
          const std::function<void(const std::string&)>& on_event) const {
    Json spec = {{"model", folder_ + "/model"},
                 {"calibration", folder_ + "/ids.safetensors"},
                 {"samples", 64},
                 {"batch_size", 64},
                 {"sequence_length", 64},
                 {"group_size", 32},
                 {"device", "cuda"}};
    spec.update(changes);
    if (!WriteFileAtomically(folder_ + "/spec.json", DumpJson(spec)).ok()) return -1;
    return testing::RunWatched(folder_ + "/spec.json", folder_ + "/" + output, on_event);
  }
  Json Report(const std::string& output) const {
    return ParseJson(ReadFile(folder_ + "/" + output + "/report.json").value()).value();
  }

  std::string folder_;
};

TEST_F(FullGpuTest, TheJobGoesOnInSmallerPieces) {
  std::vector<at::Tensor> taken;
  bool full = false;
  const auto fill = [&](const std::string& line) {
    // Its steps are under way: what they take, they have.
    if (!full && line.find("\"quantize\",\"phase_fraction\":0.") != std::string::npos &&
        line.find("\"phase_fraction\":0.0}") == std::string::npos) {
      full = true;
      taken = TakeAllMemory();
    }
    if (line.find("did not fit") != std::string::npos) taken.clear();
  };
  ASSERT_EQ(Run("out", {{"recipe", "paper"}, {"iterations", 5000}}, fill), kExitDone);
  ASSERT_TRUE(full) << "the job was over before the memory was taken";
  const Json report = Report("out");
  ASSERT_FALSE(report["warnings"].empty());
  EXPECT_THAT(report["warnings"][0].get<std::string>(), HasSubstr("did not fit"));
  EXPECT_LT(report["memory"]["micro_batches"]["tuning"].get<int64_t>(), 64);
  EXPECT_EQ(report["memory"]["activations"], "host");
}

// The whole way through a job in low memory, its Fisher pass from a file.
TEST_F(FullGpuTest, LowMemoryIsTheSameJob) {
  const auto nothing = [](const std::string&) {};
  const Json changes = {{"recipe", "fast"}, {"iterations", 20}};
  ASSERT_EQ(Run("normal", changes, nothing), kExitDone);
  Json low = changes;
  low["low_memory"] = "on";
  ASSERT_EQ(Run("low", low, nothing), kExitDone);
  // So small a job is the same in every micro-batch: 64 windows of 64 tokens are one.
  EXPECT_EQ(Report("low")["memory"]["micro_batches"], Report("normal")["memory"]["micro_batches"]);
  EXPECT_EQ(Report("low")["memory"]["activations"], "host");
  EXPECT_EQ(Report("normal")["memory"]["activations"], "device");
  EXPECT_EQ(Report("low")["result_digest"], Report("normal")["result_digest"]);
}

}  // namespace
}  // namespace ptq
