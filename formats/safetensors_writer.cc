#include "formats/safetensors_writer.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/json.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "common/torch_status.h"
#include "formats/checkpoint_reader.h"
#include "formats/hashing_writer.h"
#include "formats/headers/dtype.h"

namespace ptq {
namespace {

int64_t ElementBytes(at::ScalarType type) { return static_cast<int64_t>(at::elementSize(type)); }

int64_t TensorBytes(const LazyTensor& tensor) {
  int64_t count = 1;
  for (const int64_t extent : tensor.shape) count *= extent;
  return count * ElementBytes(tensor.dtype);
}

// The length field and the header, padded so that the data begins at a multiple of 8.
std::string BuildHeader(const std::vector<LazyTensor>& tensors,
                        const std::map<std::string, std::string>& metadata) {
  Json header = Json::object();
  if (!metadata.empty()) {
    Json& entries = header["__metadata__"] = Json::object();
    for (const auto& [key, value] : metadata) entries[key] = value;
  }
  int64_t offset = 0;
  for (const LazyTensor& tensor : tensors) {
    const int64_t end = offset + TensorBytes(tensor);
    Json& entry = header[tensor.name] = Json::object();
    entry["dtype"] = DTypeName(FromScalarType(tensor.dtype));
    entry["shape"] = tensor.shape;
    entry["data_offsets"] = {offset, end};
    offset = end;
  }
  std::string text = DumpJson(header);
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + text;
}

absl::Status AppendTensor(const LazyTensor& entry, HashingWriter& writer) {
  PTQ_ASSIGN_OR_RETURN(at::Tensor tensor, entry.load());
  if (tensor.scalar_type() != entry.dtype || tensor.sizes() != at::IntArrayRef(entry.shape)) {
    return absl::InternalError(
        absl::StrCat("tensor ", entry.name, ": dtype or shape differ from the announced ones"));
  }
  tensor = tensor.cpu().contiguous();
  return writer.Append(tensor.const_data_ptr(), tensor.nbytes());
}

// One piece is read while the one before is written.
absl::Status AppendPieces(const LazyTensor& entry, HashingWriter& writer) {
  constexpr int64_t kPieceBytes = 8 << 20;
  const int64_t size = TensorBytes(entry);
  std::vector<char> pieces[2];
  const auto begin_reading = [&](int64_t offset) {
    std::vector<char>& piece = pieces[offset / kPieceBytes % 2];
    piece.resize(static_cast<size_t>(std::min(kPieceBytes, size - offset)));
    return std::async(std::launch::async, [&entry, &piece, offset] {
      return entry.read(offset, static_cast<int64_t>(piece.size()), piece.data());
    });
  };
  std::future<absl::Status> reading = begin_reading(0);
  for (int64_t offset = 0; offset < size; offset += kPieceBytes) {
    PTQ_RETURN_IF_ERROR(reading.get());
    if (offset + kPieceBytes < size) reading = begin_reading(offset + kPieceBytes);
    const std::vector<char>& piece = pieces[offset / kPieceBytes % 2];
    PTQ_RETURN_IF_ERROR(writer.Append(piece.data(), piece.size()));
  }
  return absl::OkStatus();
}

// Seconds since the last call or the start, for the log.
class Laps {
 public:
  std::string Next() {
    const auto now = std::chrono::steady_clock::now();
    return absl::StrFormat("%.3f",
                           std::chrono::duration<double>(now - std::exchange(last_, now)).count());
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace

std::vector<LazyTensor> ToLazy(std::vector<NamedTensor> tensors) {
  std::vector<LazyTensor> result;
  for (NamedTensor& named : tensors) {
    LazyTensor& lazy = result.emplace_back();
    lazy.name = named.name;
    lazy.dtype = named.tensor.scalar_type();
    lazy.shape = named.tensor.sizes().vec();
    lazy.load = [tensor = std::move(named.tensor)]() -> absl::StatusOr<at::Tensor> {
      return tensor;
    };
  }
  return result;
}

absl::StatusOr<std::string> WriteSafetensors(
    const std::string& path, std::vector<LazyTensor> tensors,
    const std::map<std::string, std::string>& metadata,
    const std::function<absl::Status(const std::string&)>& check) {
  std::sort(tensors.begin(), tensors.end(), [](const LazyTensor& a, const LazyTensor& b) {
    const int64_t a_bytes = ElementBytes(a.dtype);
    const int64_t b_bytes = ElementBytes(b.dtype);
    return a_bytes != b_bytes ? a_bytes > b_bytes : a.name < b.name;
  });
  for (size_t i = 1; i < tensors.size(); ++i) {
    if (tensors[i].name == tensors[i - 1].name) {
      return absl::InternalError(absl::StrCat(path, ": two tensors named ", tensors[i].name));
    }
  }
  PTQ_ASSIGN_OR_RETURN(auto file, AtomicFileWriter::Create(path));
  HashingWriter writer(std::move(file));
  const std::string header = BuildHeader(tensors, metadata);
  PTQ_RETURN_IF_ERROR(writer.Append(header.data(), header.size()));
  Laps laps;
  for (LazyTensor& tensor : tensors) {
    PTQ_RETURN_IF_ERROR(CatchTorchErrors(absl::StrCat("tensor ", tensor.name), [&] {
      return tensor.read ? AppendPieces(tensor, writer) : AppendTensor(tensor, writer);
    }));
    tensor.load = nullptr;  // lets go of what the closures hold
    tensor.read = nullptr;
  }
  const std::string written = laps.Next();
  // The check reads what it compares from the page cache, while the rest goes to the disk.
  auto syncing = std::async(std::launch::async, [&] { return writer.file().Sync(); });
  absl::Status checked = check ? check(writer.file().temporary_path()) : absl::OkStatus();
  const std::string compared = laps.Next();
  PTQ_RETURN_IF_ERROR(syncing.get());
  PTQ_RETURN_IF_ERROR(checked);
  const std::string synced = laps.Next();
  PTQ_RETURN_IF_ERROR(writer.file().Commit());
  PTQ_LOG(Debug) << path << ": written and hashed in " << written << " s, checked in " << compared
                 << ", on the disk after another " << synced << ", named in " << laps.Next();
  return writer.Digest();
}

absl::StatusOr<std::string> WriteSafetensors(
    const std::string& path, std::vector<NamedTensor> tensors,
    const std::map<std::string, std::string>& metadata,
    const std::function<absl::Status(const std::string&)>& check) {
  return WriteSafetensors(path, ToLazy(std::move(tensors)), metadata, check);
}

}  // namespace ptq
