#include "formats/checkpoint_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "common/torch_status.h"

namespace ptq {
namespace {

// Where a floating type keeps its exponent: all ones there means NaN or infinite.
struct ExponentField {
  int64_t element_bytes = 0;  // 0: the type has no such values
  uint64_t mask = 0;          // in every lane of a 64-bit word
  uint64_t increment = 0;     // carries a full exponent, and no other, into the lane's top bit
  uint64_t top_bits = 0;
};

ExponentField ExponentFieldOf(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return {2, 0x7F80'7F80'7F80'7F80, 0x0080'0080'0080'0080, 0x8000'8000'8000'8000};
    case DType::kF16:
      return {2, 0x7C00'7C00'7C00'7C00, 0x0400'0400'0400'0400, 0x8000'8000'8000'8000};
    case DType::kF32:
      return {4, 0x7F80'0000'7F80'0000, 0x0080'0000'0080'0000, 0x8000'0000'8000'0000};
    case DType::kF64:
      return {8, 0x7FF0'0000'0000'0000, 0x0010'0000'0000'0000, 0x8000'0000'0000'0000};
    default:
      return {};
  }
}

// The index of the first NaN or infinite element of `size` bytes, or -1. One word of lanes a step:
// a checkpoint is tested at about the speed of memory.
int64_t FirstNonFinite(const char* data, int64_t size, const ExponentField& field) {
  if (field.element_bytes == 0) return -1;
  const auto hits = [&field](uint64_t word) {
    return ((word & field.mask) + field.increment) & field.top_bits;
  };
  const auto index = [&field](int64_t offset, uint64_t found) {
    return (offset + __builtin_ctzll(found) / 8) / field.element_bytes;
  };
  int64_t offset = 0;
  for (; offset + 8 <= size; offset += 8) {
    uint64_t word;
    std::memcpy(&word, data + offset, sizeof(word));
    if (const uint64_t found = hits(word); found != 0) return index(offset, found);
  }
  uint64_t tail = 0;
  std::memcpy(&tail, data + offset, static_cast<size_t>(size - offset));
  if (const uint64_t found = hits(tail); found != 0) return index(offset, found);
  return -1;
}

// "[3, 17]" for element `index` of a tensor of `shape`.
std::string Position(int64_t index, const std::vector<int64_t>& shape) {
  std::vector<int64_t> position(shape.size());
  for (size_t i = shape.size(); i-- > 0;) {
    position[i] = index % shape[i];
    index /= shape[i];
  }
  return absl::StrCat("[", absl::StrJoin(position, ", "), "]");
}

}  // namespace

absl::StatusOr<at::ScalarType> ToScalarType(DType dtype) {
  switch (dtype) {
    case DType::kBool:
      return at::kBool;
    case DType::kU8:
      return at::kByte;
    case DType::kI8:
      return at::kChar;
    case DType::kI16:
      return at::kShort;
    case DType::kU16:
      return at::kUInt16;
    case DType::kI32:
      return at::kInt;
    case DType::kU32:
      return at::kUInt32;
    case DType::kI64:
      return at::kLong;
    case DType::kU64:
      return at::kUInt64;
    case DType::kF16:
      return at::kHalf;
    case DType::kBF16:
      return at::kBFloat16;
    case DType::kF32:
      return at::kFloat;
    case DType::kF64:
      return at::kDouble;
    case DType::kC64:
      return at::kComplexFloat;
    case DType::kF8E5M2:
      return at::kFloat8_e5m2;
    case DType::kF8E4M3:
      return at::kFloat8_e4m3fn;
    case DType::kF8E8M0:
      return at::kFloat8_e8m0fnu;
    case DType::kF8E4M3FNUZ:
      return at::kFloat8_e4m3fnuz;
    case DType::kF8E5M2FNUZ:
      return at::kFloat8_e5m2fnuz;
    case DType::kF4:
    case DType::kF6E2M3:
    case DType::kF6E3M2:
      break;
  }
  return absl::UnimplementedError(
      absl::StrCat("tensors of dtype ", DTypeName(dtype), " can't be loaded"));
}

DType FromScalarType(at::ScalarType type) {
  switch (type) {
    case at::kBool:
      return DType::kBool;
    case at::kByte:
      return DType::kU8;
    case at::kChar:
      return DType::kI8;
    case at::kShort:
      return DType::kI16;
    case at::kInt:
      return DType::kI32;
    case at::kLong:
      return DType::kI64;
    case at::kHalf:
      return DType::kF16;
    case at::kBFloat16:
      return DType::kBF16;
    case at::kDouble:
      return DType::kF64;
    default:
      return DType::kF32;
  }
}

absl::StatusOr<std::unique_ptr<SafetensorsCheckpointReader>> SafetensorsCheckpointReader::Open(
    CheckpointIndex index) {
  std::unique_ptr<SafetensorsCheckpointReader> reader(
      new SafetensorsCheckpointReader(std::move(index)));
  for (const std::string& name : reader->index_.files()) {
    PTQ_ASSIGN_OR_RETURN(auto file, ReadableFile::Open(JoinPath(reader->index_.folder(), name)));
    reader->files_.push_back(std::move(file));
  }
  return reader;
}

bool SafetensorsCheckpointReader::Contains(const std::string& name) const {
  return index_.Find(name) != nullptr;
}

const ReadableFile& SafetensorsCheckpointReader::FileOf(const CheckpointTensor& tensor) const {
  const auto& names = index_.files();
  const auto position = std::lower_bound(names.begin(), names.end(), tensor.file);
  return files_[static_cast<size_t>(position - names.begin())];
}

void SafetensorsCheckpointReader::Prefetch(const std::string& name) const {
  const CheckpointTensor* entry = index_.Find(name);
  if (entry != nullptr) FileOf(*entry).Prefetch(entry->file_offset, entry->info.bytes());
}

absl::StatusOr<const CheckpointTensor*> SafetensorsCheckpointReader::Find(
    const std::string& name) const {
  const CheckpointTensor* entry = index_.Find(name);
  if (entry != nullptr) return entry;
  return absl::NotFoundError(
      absl::StrCat("tensor ", name, " is not in the checkpoint ", index_.folder()));
}

absl::StatusOr<StoredTensor> SafetensorsCheckpointReader::Describe(const std::string& name) const {
  PTQ_ASSIGN_OR_RETURN(const CheckpointTensor* entry, Find(name));
  const auto dtype = ToScalarType(entry->info.dtype);
  if (!dtype.ok()) return Annotate(dtype.status(), absl::StrCat("tensor ", name));
  return StoredTensor{*dtype, entry->info.shape};
}

absl::Status SafetensorsCheckpointReader::ReadBytes(const std::string& name, int64_t offset,
                                                    int64_t size, void* out) const {
  PTQ_ASSIGN_OR_RETURN(const CheckpointTensor* entry, Find(name));
  const ReadableFile& file = FileOf(*entry);
  const ExponentField field = ExponentFieldOf(entry->info.dtype);
  char* data = static_cast<char*>(out);
  // Tested piece by piece while it is in the cache.
  constexpr int64_t kPieceBytes = 1 << 20;
  for (int64_t done = 0; done < size; done += kPieceBytes) {
    const int64_t count = std::min(kPieceBytes, size - done);
    const absl::Status status =
        file.ReadAt(entry->file_offset + offset + done, data + done, static_cast<size_t>(count));
    if (!status.ok()) return Annotate(status, absl::StrCat("tensor ", name));
    const int64_t bad = FirstNonFinite(data + done, count, field);
    if (bad >= 0) {
      const int64_t index = (offset + done) / field.element_bytes + bad;
      return absl::InvalidArgumentError(absl::StrCat("tensor ", name, " holds NaN or Inf at ",
                                                     Position(index, entry->info.shape), " (",
                                                     file.path(), ")"));
    }
  }
  return absl::OkStatus();
}

}  // namespace ptq
