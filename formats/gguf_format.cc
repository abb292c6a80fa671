// The gguf format: one file, "model.gguf", for llama.cpp and what is built on it, with the
// tokenizer inside. Matrices that are not quantized keep their dtype, vectors become float32.
#include <ATen/core/Tensor.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "common/torch_status.h"
#include "formats/checkpoint_format.h"
#include "formats/gguf_blocks.h"
#include "formats/gguf_checkpoint.h"
#include "formats/gguf_file.h"
#include "formats/gguf_metadata.h"
#include "formats/gguf_names.h"
#include "formats/gguf_tokenizer.h"
#include "formats/headers/model_files.h"
#include "formats/headers/quote.h"
#include "formats/headers/tensor_table.h"

namespace ptq {
namespace {

constexpr char kFileName[] = "model.gguf";
constexpr int64_t kPieceBytes = 8 << 20;

// A tensor of the checkpoint inside a tensor of the file.
struct Part {
  TableTensor tensor;
  GgufPlace place;
  const PlannedModule* module = nullptr;  // of a quantized weight
};

// A tensor of the file: of one part, or of a stack of experts' weights.
struct Entry {
  GgufTensorInfo info;
  std::vector<Part> parts;
};

// All tensors of the file, in the model's order.
struct Layout {
  GgufMetadata metadata;
  std::vector<Entry> entries;
  std::vector<std::pair<std::string, std::vector<float>>> rope_factors;
};

absl::StatusOr<GgufType> TypeOfPlain(const Part& part, const CheckpointIndex& index) {
  if (part.place.always_f32) return GgufType::kF32;
  const CheckpointTensor* stored = index.Find(part.tensor.name);
  const DType dtype = stored == nullptr ? DType::kF32 : stored->info.dtype;
  if (dtype == DType::kF16) return GgufType::kF16;
  if (dtype == DType::kBF16) return GgufType::kBF16;
  return GgufType::kF32;
}

absl::StatusOr<GgufType> TypeOf(const Part& part, const CheckpointIndex& index) {
  return part.module != nullptr ? GgufTypeOf(*part.module) : TypeOfPlain(part, index);
}

// Adds `part` to the layout: a new entry, or the next expert of the last one of that name.
absl::Status AddPart(Part part, const CheckpointIndex& index, Layout& layout,
                     std::map<std::string, size_t>& by_name) {
  PTQ_ASSIGN_OR_RETURN(const GgufType type, TypeOf(part, index));
  const auto [known, fresh] = by_name.emplace(part.place.name, layout.entries.size());
  if (fresh) {
    Entry& entry = layout.entries.emplace_back();
    entry.info.name = part.place.name;
    entry.info.type = type;
    entry.info.shape = part.place.shape;
    if (part.place.expert >= 0) entry.info.shape.insert(entry.info.shape.begin(), 1);
    entry.parts.push_back(std::move(part));
    return absl::OkStatus();
  }
  Entry& entry = layout.entries[known->second];
  const auto experts = static_cast<int64_t>(entry.parts.size());
  if (part.place.expert != experts) {
    return absl::InternalError(absl::StrCat("two tensors become ", part.place.name));
  }
  if (entry.info.type != type) {
    return absl::FailedPreconditionError(
        absl::StrCat("tensor ", part.tensor.name,
                     ": GGUF keeps all experts of a block in one tensor of one type; ",
                     "give them one scheme, or use another format"));
  }
  entry.info.shape.front() = experts + 1;
  entry.parts.push_back(std::move(part));
  return absl::OkStatus();
}

absl::StatusOr<Layout> LayOut(const ExportPlan& plan) {
  const ModelConfig& config = plan.source.config;
  PTQ_ASSIGN_OR_RETURN(const GgufFamily family, GgufFamilyOf(config));
  std::map<std::string, const PlannedModule*> planned;
  std::map<GgufType, int64_t> weights;
  for (const PlannedModule& module : plan.modules) {
    planned[module.module + ".weight"] = &module;
    PTQ_ASSIGN_OR_RETURN(const GgufType type, GgufTypeOf(module));
    // The file's type is that of its layers.
    if (module.place == ModulePlace::kBlock)
      weights[type] += module.out_features * module.in_features;
  }
  Layout layout;
  std::map<std::string, size_t> by_name;
  for (const TableTensor& tensor : BuildTensorTable(config)) {
    Part part;
    part.tensor = tensor;
    PTQ_ASSIGN_OR_RETURN(part.place, GgufPlaceOf(family, config, tensor));
    if (const auto module = planned.find(tensor.name); module != planned.end()) {
      part.module = module->second;
    }
    Part head = part;
    PTQ_RETURN_IF_ERROR(AddPart(std::move(part), plan.source.index, layout, by_name));
    if (tensor.part == TensorPart::kTokenEmbedding && config.tie_word_embeddings &&
        family.needs_head) {
      head.place.name = "output.weight";
      PTQ_RETURN_IF_ERROR(AddPart(std::move(head), plan.source.index, layout, by_name));
    }
  }
  layout.rope_factors = GgufRopeFactors(config);
  GgufType most = GgufType::kF16;
  int64_t count = 0;
  for (const auto& [type, size] : weights) {
    if (size > count) most = type;
    count = std::max(count, size);
  }
  PTQ_ASSIGN_OR_RETURN(layout.metadata, GgufModelMetadata(family, config, most));
  PTQ_ASSIGN_OR_RETURN(auto tokenizer,
                       GgufTokenizerMetadata(plan.source.index.folder(), config.vocab_size));
  for (auto& entry : tokenizer) layout.metadata.push_back(std::move(entry));
  return layout;
}

// Reads what a file is made of: plain tensors, and the records of one block at a time, while the
// next one is read.
class Source {
 public:
  explicit Source(const QuantizedCheckpoint& checkpoint)
      : checkpoint_(checkpoint), blocks_(checkpoint.plan().source.config.num_hidden_layers) {}

  // The record of `part`, contiguous on the CPU.
  absl::StatusOr<const AffineQuantizedTensor*> Record(const Part& part) {
    const int64_t block = BlockOf(part.tensor, blocks_);
    if (block != block_) PTQ_RETURN_IF_ERROR(Load(block));
    const auto record = records_.find(part.module->module);
    if (record == records_.end()) {
      return absl::DataLossError(absl::StrCat("module ", part.module->module, " has no record"));
    }
    return &record->second;
  }

  // Calls `take` with the bytes of a plain tensor as the file has them, piece by piece.
  absl::Status ReadPlain(const Part& part, GgufType type, const GgufSink& take) const {
    const CheckpointReader& reader = checkpoint_.plain();
    PTQ_ASSIGN_OR_RETURN(const StoredTensor stored, reader.Describe(part.tensor.name));
    if (stored.shape != part.tensor.stored_shape()) {
      return absl::DataLossError(absl::StrCat("tensor ", part.tensor.name, ": another shape"));
    }
    const bool converted = type == GgufType::kF32 && stored.dtype != at::kFloat;
    if (converted || part.tensor.transposed || part.place.add_one || !part.place.rows.empty()) {
      PTQ_ASSIGN_OR_RETURN(at::Tensor tensor, reader.Read(part.tensor.name));
      if (part.tensor.transposed) tensor = tensor.t();
      if (type == GgufType::kF32) tensor = tensor.to(at::kFloat);
      if (part.place.add_one) tensor = tensor.add(1);
      if (!part.place.rows.empty()) {
        tensor = at::index_select(tensor, 0, at::tensor(part.place.rows, at::kLong));
      }
      tensor = tensor.contiguous();
      return take(tensor.const_data_ptr(), tensor.nbytes());
    }
    std::string piece;
    for (int64_t offset = 0; offset < stored.bytes(); offset += kPieceBytes) {
      piece.resize(static_cast<size_t>(std::min(kPieceBytes, stored.bytes() - offset)));
      PTQ_RETURN_IF_ERROR(reader.ReadBytes(part.tensor.name, offset,
                                           static_cast<int64_t>(piece.size()), piece.data()));
      PTQ_RETURN_IF_ERROR(take(piece.data(), piece.size()));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Load(int64_t block) {
    block_.reset();
    records_.clear();
    auto modules = ahead_.valid() ? ahead_.get() : absl::StatusOr<Modules>(Modules());
    if (block != ahead_block_) modules = checkpoint_.ReadBlock(block);
    PTQ_RETURN_IF_ERROR(modules.status());
    ahead_block_.reset();
    if (block + 1 < blocks_) {
      ahead_block_ = block + 1;
      ahead_ = std::async(std::launch::async, [this, next = block + 1] {
        return CatchTorchErrors("block " + std::to_string(next),
                                [&] { return checkpoint_.ReadBlock(next); });
      });
    }
    for (QuantizedModule& module : *modules) {
      AffineQuantizedTensor& record = module.weight;
      for (at::Tensor* tensor : TensorsOf(record)) *tensor = tensor->cpu().contiguous();
      records_[module.module] = std::move(record);
    }
    block_ = block;
    return absl::OkStatus();
  }

  using Modules = std::vector<QuantizedModule>;

  const QuantizedCheckpoint& checkpoint_;
  const int64_t blocks_;
  std::optional<int64_t> block_;  // whose records these are
  std::map<std::string, AffineQuantizedTensor> records_;
  std::optional<int64_t> ahead_block_;
  std::future<absl::StatusOr<Modules>> ahead_;
};

// Calls `body` with the rows of a weight, some at a time: a whole vocabulary in the file's form
// would be as large as its record.
absl::Status ForRows(const Part& part,
                     const std::function<absl::Status(const std::vector<int64_t>& rows)>& body) {
  constexpr int64_t kElements = int64_t{1} << 26;
  const std::vector<int64_t> rows = RowsOf(part.place);
  const auto count = static_cast<int64_t>(rows.size());
  const int64_t step = std::max<int64_t>(1, kElements / part.tensor.shape[1]);
  for (int64_t begin = 0; begin < count; begin += step) {
    const auto first = rows.begin() + begin;
    PTQ_RETURN_IF_ERROR(body({first, first + std::min(step, count - begin)}));
  }
  return absl::OkStatus();
}

absl::Status WritePart(const Part& part, GgufType type, Source& source, const GgufSink& sink) {
  if (part.module != nullptr) {
    PTQ_ASSIGN_OR_RETURN(const AffineQuantizedTensor* record, source.Record(part));
    return ForRows(part, [&](const std::vector<int64_t>& rows) -> absl::Status {
      PTQ_ASSIGN_OR_RETURN(const std::string data,
                           EncodeGgufRows(part.module->module, *record, type, rows));
      return sink(data.data(), data.size());
    });
  }
  return source.ReadPlain(part, type, sink);
}

// Compares the bytes of a part, which begin at `offset` of the file's tensor `info`, with what they
// are made from.
absl::Status CheckPart(const Part& part, const GgufFile& file, const GgufTensorInfo& info,
                       int64_t offset, int64_t bytes, Source& source) {
  std::string data;
  if (part.module != nullptr) {
    PTQ_ASSIGN_OR_RETURN(const AffineQuantizedTensor* record, source.Record(part));
    const int64_t row_bytes = bytes / part.tensor.shape[0];
    return ForRows(part, [&](const std::vector<int64_t>& rows) -> absl::Status {
      data.resize(rows.size() * static_cast<size_t>(row_bytes));
      const auto size = static_cast<int64_t>(data.size());
      PTQ_RETURN_IF_ERROR(file.Read(info, offset, size, data.data()));
      offset += size;
      return CheckGgufRows(part.module->module, *record, info.type, rows, data);
    });
  }
  int64_t done = 0;
  PTQ_RETURN_IF_ERROR(source.ReadPlain(part, info.type, [&](const void* expected, size_t size) {
    data.resize(size);
    PTQ_RETURN_IF_ERROR(file.Read(info, offset + done, static_cast<int64_t>(size), data.data()));
    done += static_cast<int64_t>(size);
    if (std::memcmp(data.data(), expected, size) == 0) return absl::OkStatus();
    return absl::DataLossError(
        absl::StrCat("tensor ", part.tensor.name, " was not written as it should be"));
  }));
  return absl::OkStatus();
}

// Opens the file that was written and compares everything in it with `layout`'s origin.
absl::Status CheckFile(const std::string& path, const Layout& layout, Source& source,
                       const CancellationToken& cancel) {
  PTQ_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::Open(path));
  if (file.metadata() != layout.metadata ||
      file.tensors().size() != layout.entries.size() + layout.rope_factors.size()) {
    return absl::DataLossError(absl::StrCat(path, ": its header was not written as it should be"));
  }
  for (const Entry& entry : layout.entries) {
    const GgufTensorInfo* info = file.Find(entry.info.name);
    if (info == nullptr || info->type != entry.info.type || info->shape != entry.info.shape) {
      return absl::DataLossError(absl::StrCat(path, ": tensor ", entry.info.name,
                                              ": missing, or of another type or shape"));
    }
    const int64_t bytes = info->bytes() / static_cast<int64_t>(entry.parts.size());
    for (size_t i = 0; i < entry.parts.size(); ++i) {
      PTQ_RETURN_IF_ERROR(cancel.Check());
      PTQ_RETURN_IF_ERROR(
          CheckPart(entry.parts[i], file, *info, static_cast<int64_t>(i) * bytes, bytes, source));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<FileDigests> WriteFile(const QuantizedCheckpoint& checkpoint,
                                      const std::string& folder, const CancellationToken& cancel) {
  PTQ_ASSIGN_OR_RETURN(const Layout layout, LayOut(checkpoint.plan()));
  Source source(checkpoint);
  std::vector<GgufTensorSource> tensors;
  for (const auto& [name, factors] : layout.rope_factors) {
    GgufTensorSource& tensor = tensors.emplace_back();
    tensor.info.name = name;
    tensor.info.shape = {static_cast<int64_t>(factors.size())};
    tensor.write = [&factors = factors](const GgufSink& sink) {
      return sink(factors.data(), factors.size() * sizeof(float));
    };
  }
  for (const Entry& entry : layout.entries) {
    GgufTensorSource& tensor = tensors.emplace_back();
    tensor.info = entry.info;
    tensor.write = [&](const GgufSink& sink) -> absl::Status {
      for (const Part& part : entry.parts) {
        PTQ_RETURN_IF_ERROR(cancel.Check());
        PTQ_RETURN_IF_ERROR(WritePart(part, entry.info.type, source, sink));
      }
      return absl::OkStatus();
    };
  }
  for (const Entry& entry : layout.entries) {
    if (entry.info.type != GgufType::kQ4_1 && entry.info.type != GgufType::kQ5_1) continue;
    PTQ_LOG(Warning)
        << "gguf: " << TraitsOf(entry.info.type).name << " keeps codes and scales of "
        << "asymmetric weights as they are, and rounds each group's minimum to float16";
    break;
  }
  PTQ_ASSIGN_OR_RETURN(
      std::string digest,
      WriteGguf(JoinPath(folder, kFileName), layout.metadata, std::move(tensors),
                [&](const std::string& path) { return CheckFile(path, layout, source, cancel); }));
  return FileDigests{{kFileName, std::move(digest)}};
}

class Format final : public CheckpointFormat {
 public:
  std::string name() const override { return "gguf"; }

  absl::Status CheckPlan(const ExportPlan& plan) const override { return LayOut(plan).status(); }

  absl::StatusOr<FileDigests> Write(const QuantizedCheckpoint& checkpoint,
                                    const std::string& folder,
                                    const CancellationToken& cancel) const override {
    return CatchTorchErrors("gguf output", [&] { return WriteFile(checkpoint, folder, cancel); });
  }

  absl::StatusOr<std::unique_ptr<QuantizedCheckpoint>> Open(
      const std::string& folder) const override {
    PTQ_ASSIGN_OR_RETURN(const std::string path, FindGgufFile(folder));
    if (path.empty()) return absl::NotFoundError(folder + ": there is no .gguf file");
    return OpenGguf(path, ModelFolder(path));
  }
};

}  // namespace

std::unique_ptr<CheckpointFormat> MakeGgufFormat() { return std::make_unique<Format>(); }

}  // namespace ptq
