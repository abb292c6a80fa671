#include "models/block_loader.h"

#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "common/status_macros.h"
#include "common/torch_status.h"

namespace ptq {
namespace {

// Tensors in the staging memory begin at multiples of this: enough for every dtype.
constexpr int64_t kAlignment = 64;
// One thread reads a page cache at some 3 GB/s, less than a GPU takes; a disk wants several
// requests at a time too.
constexpr unsigned kReaders = 8;
constexpr int64_t kPieceBytes = 4 << 20;  // of one request

int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int64_t Elements(at::IntArrayRef shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

}  // namespace

BlockLoader::~BlockLoader() {
  stop_ = true;
  if (ahead_.valid()) ahead_.wait();
}

absl::StatusOr<std::shared_ptr<const DecoderBlock>> BlockLoader::Load(int64_t index, int64_t next) {
  using Block = std::shared_ptr<const DecoderBlock>;
  return CatchTorchErrors("loading a block", [&]() -> absl::StatusOr<Block> {
    Block block;
    if (const auto kept = kept_.find(index); kept != kept_.end()) {
      block = kept->second;
    } else {
      const bool staged = options_.stage && index >= 0 && index < model_.block_count();
      PTQ_ASSIGN_OR_RETURN(block, staged ? LoadStaged(index) : LoadNow(index));
      const int64_t bytes = BytesOf(index);
      if (kept_bytes_ + bytes <= options_.kept_bytes) {
        kept_bytes_ += bytes;
        kept_[index] = block;
      }
    }
    if (next >= 0 && next < model_.block_count() && kept_.count(next) == 0) Begin(next);
    return block;
  });
}

absl::StatusOr<std::shared_ptr<const DecoderBlock>> BlockLoader::LoadNow(int64_t index) {
  PTQ_ASSIGN_OR_RETURN(std::unique_ptr<DecoderBlock> block, model_.LoadBlock(index));
  return block;
}

absl::StatusOr<std::shared_ptr<const DecoderBlock>> BlockLoader::LoadStaged(int64_t index) {
  if (ahead_index_ != index) Begin(index);
  ahead_index_ = kNone;
  PTQ_RETURN_IF_ERROR(ahead_.get());
  const ComputeOptions& options = model_.options();
  PTQ_ASSIGN_OR_RETURN(
      std::unique_ptr<DecoderBlock> block,
      model_.MakeBlock(index, [&](const std::string& name) -> absl::StatusOr<at::Tensor> {
        // A copy on every device, which the host waits for: the staging memory is used again. The
        // model knows in which dtype it computes with it.
        return staged_.at(name).to(options.device, staged_.at(name).scalar_type(),
                                   /*non_blocking=*/false, /*copy=*/true);
      }));
  staged_.clear();
  return block;
}

void BlockLoader::Begin(int64_t index) {
  if (ahead_index_ == index) return;
  if (ahead_.valid()) ahead_.wait();
  ahead_index_ = index;
  if (options_.stage && !staging_.defined()) {
    int64_t bytes = 0;
    for (int64_t block = 0; block < model_.block_count(); ++block) {
      bytes = std::max(bytes, BytesOf(block));
    }
    staging_ = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(
                                      !model_.options().device.is_cpu()));
  }
  ahead_ = std::async(std::launch::async, [this, index] {
    return CatchTorchErrors("reading a block", [&]() -> absl::Status {
      if (options_.stage) return Stage(index);
      Prefetch(index);
      return absl::OkStatus();
    });
  });
}

absl::Status BlockLoader::Stage(int64_t index) {
  const CheckpointReader& reader = model_.reader();
  struct Piece {
    const std::string* name;
    int64_t offset;
    int64_t size;
    char* out;
  };
  std::vector<Piece> pieces;
  staged_.clear();
  int64_t used = 0;
  for (const TableTensor& row : model_.BlockTensors(index)) {
    PTQ_ASSIGN_OR_RETURN(const StoredTensor stored, reader.Describe(row.name));
    const int64_t bytes = stored.bytes();
    at::Tensor tensor;
    if (used + bytes <= staging_.numel()) {
      tensor = staging_.narrow(0, used, bytes).view(stored.dtype).view(stored.shape);
      used += Aligned(bytes);
    } else {  // stored in a wider dtype than is computed in
      tensor = at::empty(stored.shape, at::TensorOptions().dtype(stored.dtype));
    }
    const auto entry = staged_.insert_or_assign(row.name, tensor).first;
    char* data = static_cast<char*>(tensor.data_ptr());
    for (int64_t offset = 0; offset < bytes; offset += kPieceBytes) {
      pieces.push_back(
          {&entry->first, offset, std::min(kPieceBytes, bytes - offset), data + offset});
    }
  }
  // Begun in order: of several errors the first one is told.
  std::vector<absl::Status> statuses(pieces.size(), absl::CancelledError("not needed"));
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  const auto read = [&] {
    for (size_t i = next++; i < pieces.size() && !stop_ && !failed; i = next++) {
      const Piece& piece = pieces[i];
      statuses[i] = reader.ReadBytes(*piece.name, piece.offset, piece.size, piece.out);
      if (!statuses[i].ok()) failed = true;
    }
  };
  {
    std::vector<std::jthread> helpers;
    const unsigned threads = std::min(kReaders, std::thread::hardware_concurrency());
    for (unsigned i = 1; i < threads && i < pieces.size(); ++i) helpers.emplace_back(read);
    read();
  }
  for (const absl::Status& status : statuses) PTQ_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

void BlockLoader::Prefetch(int64_t index) const {
  for (const TableTensor& row : model_.BlockTensors(index)) {
    if (stop_) return;
    model_.reader().Prefetch(row.name);
  }
}

int64_t BlockLoader::BytesOf(int64_t index) const {
  const auto element_bytes = static_cast<int64_t>(c10::elementSize(model_.options().dtype));
  int64_t bytes = 0;
  for (const TableTensor& row : model_.BlockTensors(index)) {
    bytes += Aligned(Elements(row.shape) * element_bytes);
  }
  return bytes;
}

}  // namespace ptq
