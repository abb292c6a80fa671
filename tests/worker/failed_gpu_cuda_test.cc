// A GPU that fails under a running job: the process says so and ends, the next one goes on.
// Needs an NVIDIA GPU: label gpu.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

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
using ::testing::Contains;
using ::testing::HasSubstr;

// Steps of a block: about a second, in which the fault comes.
constexpr int kIterations = 3000;

class FailedGpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");  // CUDA does not survive a fork
    ASSERT_THAT(LoadCuda(),
                IsOk());  // before libtorch is asked for anything: it remembers what it had
    folder_ = ::testing::TempDir() + "failed_gpu";
  }

  std::string PathOf(const std::string& name) const { return folder_ + "/" + name; }

  void WriteJob() const {
    ASSERT_THAT(RemoveTree(folder_), IsOk());
    ASSERT_THAT(testing::WriteTinyCheckpoint(PathOf("model"), /*tied=*/false), IsOk());
    const at::Tensor ids = at::randint(0, 50, {16, 16}, at::kLong);
    ASSERT_THAT(WriteSafetensors(PathOf("ids.safetensors"),
                                 std::vector<NamedTensor>{{"input_ids", ids}}, {})
                    .status(),
                IsOk());
    const Json spec = {{"model", PathOf("model")},
                       {"calibration", PathOf("ids.safetensors")},
                       {"samples", 16},
                       {"sequence_length", 16},
                       {"algorithm", "auto-round"},
                       {"recipe", "paper"},
                       {"iterations", kIterations},
                       {"group_size", 32},
                       {"device", "cuda"}};
    ASSERT_THAT(WriteFileAtomically(PathOf("spec.json"), DumpJson(spec)), IsOk());
  }

  int Run(const std::function<void(const std::string&)>& on_event) const {
    return testing::RunWatched(PathOf("spec.json"), PathOf("output"), on_event);
  }

  std::string folder_;
};

// An index out of bounds stops the kernel by an assertion, after which the process's context
// answers every call with that error.
void BreakDevice() {
  const at::Tensor values = at::zeros({4}, at::device(at::kCUDA));
  at::index_select(values, 0, at::full({1}, 1 << 20, values.options().dtype(at::kLong)));
}

TEST_F(FailedGpuTest, TheProcessSaysSoAndTheNextOneContinues) {
  ASSERT_NO_FATAL_FAILURE(WriteJob());
  EXPECT_EXIT(
      {
        bool broken = false;
        const int status = Run([&broken](const std::string& line) {
          if (broken || line.find("\"block_done\"") == std::string::npos) return;
          broken = true;
          BreakDevice();
        });
        std::exit(status);
      },
      ::testing::ExitedWithCode(kExitFailed),
      "the GPU failed \\(CUDA: CUDA error: .*finished blocks are kept");

  std::vector<std::string> lines;
  ASSERT_EQ(Run([&lines](const std::string& line) { lines.push_back(line); }), kExitDone);
  EXPECT_THAT(lines, Contains(HasSubstr("\"blocks_resumed\":1")));
  EXPECT_THAT(lines, Contains(HasSubstr("\"succeeded\"")));
}

}  // namespace
}  // namespace ptq
