// Slots on the device and in the file keep the same values.
#include "observers/hidden_store.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include "tests/testing/status_matchers.h"

namespace ptq {
namespace {

using ::ptq::testing::IsOk;
using ::ptq::testing::StatusIs;
using ::testing::HasSubstr;

TEST(HiddenStore, PiecesComeBackAsTheyWereWhereverTheyLie) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const int64_t slot_bytes = 5 * 3 * 4 * static_cast<int64_t>(c10::elementSize(dtype));
    for (const int64_t on_device : {0, 1, 3}) {
      PTQ_ASSERT_OK_AND_ASSIGN(HiddenStore store,
                               HiddenStore::Create(3, {5, 3, 4}, at::TensorOptions(dtype),
                                                   {.device_bytes = on_device * slot_bytes,
                                                    .folder = ::testing::TempDir()}));
      std::vector<at::Tensor> written;
      for (int64_t slot = 0; slot < 3; ++slot) {
        written.push_back(at::randn({5, 3, 4}).to(dtype));
        ASSERT_THAT(store.Write(slot, 0, written.back().narrow(0, 0, 2)), IsOk());
        ASSERT_THAT(store.Write(slot, 2, written.back().narrow(0, 2, 3)), IsOk());
      }
      for (int64_t slot = 0; slot < 3; ++slot) {
        PTQ_ASSERT_OK_AND_ASSIGN(const at::Tensor piece, store.Read(slot, 1, 3));
        EXPECT_TRUE(piece.equal(written[static_cast<size_t>(slot)].narrow(0, 1, 3)))
            << slot << " of " << on_device << " on the device";
      }
    }
  }
}

TEST(HiddenStore, AFolderThatIsMissingIsNamed) {
  EXPECT_THAT(HiddenStore::Create(1, {1, 1, 1}, at::TensorOptions(at::kFloat),
                                  {.device_bytes = 0, .folder = "/nonexistent/folder"}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/nonexistent/folder")));
}

}  // namespace
}  // namespace ptq
