#include "formats/gguf_checkpoint.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "common/torch_status.h"
#include "formats/checkpoint_folder.h"
#include "formats/gguf_config.h"
#include "formats/gguf_decode.h"
#include "formats/gguf_file.h"
#include "formats/gguf_metadata.h"
#include "formats/gguf_names.h"
#include "formats/gguf_tokenizer_files.h"
#include "formats/headers/model_files.h"
#include "formats/headers/quote.h"
#include "formats/headers/tensor_table.h"
#include "formats/record_file.h"
#include "formats/safetensors_format.h"

namespace ptq {
namespace {

constexpr int64_t kBlock = 32;
constexpr char kConfig[] = "config.json";

// A folder that goes with this object.
class TemporaryFolder {
 public:
  static absl::StatusOr<std::unique_ptr<TemporaryFolder>> Create() {
    std::error_code error;
    std::string path = (std::filesystem::temp_directory_path(error) / "ptq-gguf-XXXXXX").string();
    if (error || ::mkdtemp(path.data()) == nullptr) return ErrnoStatus(errno, path);
    return std::unique_ptr<TemporaryFolder>(new TemporaryFolder(path));
  }
  ~TemporaryFolder() { RemoveTree(path_).IgnoreError(); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  explicit TemporaryFolder(std::string path) : path_(std::move(path)) {}
  const std::string path_;
};

// A tensor of the checkpoint that is not a record.
struct PlainTensor {
  const GgufTensorInfo* info = nullptr;
  int64_t offset = 0;  // of its bytes in the file's tensor
  TableTensor table;
  std::vector<int64_t> rows;  // as GgufPlace::rows
  at::ScalarType dtype = at::kFloat;
  // Not the file's bytes: other values, or another order. Made as a whole when it is read.
  bool made = false;
  bool subtract_one = false;
  bool always_f32 = false;  // as GgufPlace::always_f32
};

int64_t ElementsOf(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

at::ScalarType ScalarTypeOf(GgufType type) {
  if (type == GgufType::kF16) return at::kHalf;
  if (type == GgufType::kBF16) return at::kBFloat16;
  return at::kFloat;
}

bool IsPlain(GgufType type) {
  return type == GgufType::kF32 || type == GgufType::kF16 || type == GgufType::kBF16;
}

absl::Status CheckFinite(const std::string& name, const at::Tensor& values) {
  if (values.isfinite().all().item<bool>()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("tensor ", name, " has a value that is NaN or infinite"));
}

// Reads plain tensors by their names in the checkpoint.
class PlainReader final : public CheckpointReader {
 public:
  explicit PlainReader(const GgufFile& file) : file_(file) {}

  void Add(PlainTensor tensor) { tensors_.emplace(tensor.table.name, std::move(tensor)); }

  absl::StatusOr<StoredTensor> Describe(const std::string& name) const override {
    PTQ_ASSIGN_OR_RETURN(const PlainTensor* tensor, Find(name));
    return StoredTensor{tensor->dtype, tensor->table.stored_shape()};
  }

  absl::Status ReadBytes(const std::string& name, int64_t offset, int64_t size,
                         void* out) const override {
    return CatchTorchErrors("tensor " + name, [&]() -> absl::Status {
      PTQ_ASSIGN_OR_RETURN(const PlainTensor* tensor, Find(name));
      if (!IsPlain(tensor->info->type)) return ReadQuantized(*tensor, offset, size, out);
      if (tensor->made) {
        const std::lock_guard lock(mutex_);
        if (made_name_ != name) {
          PTQ_ASSIGN_OR_RETURN(made_, Make(*tensor));
          made_name_ = name;
        }
        std::memcpy(out, static_cast<const char*>(made_.const_data_ptr()) + offset,
                    static_cast<size_t>(size));
        return absl::OkStatus();
      }
      PTQ_RETURN_IF_ERROR(file_.Read(*tensor->info, tensor->offset + offset, size, out));
      const auto count = size / static_cast<int64_t>(c10::elementSize(tensor->dtype));
      return CheckFinite(name, at::from_blob(out, {count}, tensor->dtype));
    });
  }

  void Prefetch(const std::string&) const override {}
  bool Contains(const std::string& name) const override { return tensors_.contains(name); }

  // The whole tensor as the checkpoint has it.
  absl::StatusOr<at::Tensor> Make(const PlainTensor& tensor) const {
    const std::string& name = tensor.table.name;
    at::Tensor stored = at::empty(tensor.table.shape, ScalarTypeOf(tensor.info->type));
    PTQ_RETURN_IF_ERROR(file_.Read(*tensor.info, tensor.offset,
                                   static_cast<int64_t>(stored.nbytes()),
                                   stored.mutable_data_ptr()));
    PTQ_RETURN_IF_ERROR(CheckFinite(name, stored));
    at::Tensor values = stored;
    if (tensor.subtract_one) {
      values = stored.sub(1);
      if (!values.add(1).equal(stored)) {
        return absl::FailedPreconditionError(
            absl::StrCat("tensor ", name, ": the file has 1 + its values (", tensor.info->name,
                         "), which float32 can't be without the 1"));
      }
    }
    if (!tensor.rows.empty()) {
      at::Tensor ordered = at::empty_like(values);
      for (size_t i = 0; i < tensor.rows.size(); ++i) {
        ordered.select(0, tensor.rows[i]).copy_(values.select(0, static_cast<int64_t>(i)));
      }
      values = ordered;
    }
    if (tensor.table.transposed) values = values.t();
    return values.to(tensor.dtype).contiguous();
  }

 private:
  absl::StatusOr<const PlainTensor*> Find(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      return absl::NotFoundError(absl::StrCat("tensor ", name, " is not in the file"));
    }
    return &found->second;
  }

  // Values of codes: decoded block by block, whatever part of them is asked for.
  absl::Status ReadQuantized(const PlainTensor& tensor, int64_t offset, int64_t size,
                             void* out) const {
    const int64_t first = offset / 4;
    const int64_t last = (offset + size) / 4;
    const int64_t begin = first / kBlock;
    const int64_t end = (last + kBlock - 1) / kBlock;
    const int64_t bytes = TraitsOf(tensor.info->type).bytes;
    std::string data(static_cast<size_t>((end - begin) * bytes), '\0');
    PTQ_RETURN_IF_ERROR(file_.Read(*tensor.info, tensor.offset + begin * bytes,
                                   static_cast<int64_t>(data.size()), data.data()));
    std::vector<float> values(static_cast<size_t>((end - begin) * kBlock));
    DecodeGgufValues(tensor.info->type, data.data(), end - begin, values.data());
    std::memcpy(out, values.data() + (first - begin * kBlock), static_cast<size_t>(size));
    return CheckFinite(tensor.table.name,
                       at::from_blob(out, {last - first}, at::TensorOptions().dtype(at::kFloat)));
  }

  const GgufFile& file_;
  std::map<std::string, PlainTensor> tensors_;
  mutable std::mutex mutex_;
  mutable std::string made_name_;  // of the tensor that was made last, which is read in pieces
  mutable at::Tensor made_;
};

// A weight that is a record.
struct QuantizedPart {
  PlannedModule module;
  const GgufTensorInfo* info = nullptr;
  int64_t offset = 0;
  int64_t bytes = 0;
  std::vector<int64_t> rows;
};

class GgufCheckpoint final : public QuantizedCheckpoint {
 public:
  explicit GgufCheckpoint(GgufFile file) : file_(std::move(file)), reader_(file_) {}

  absl::Status Load(const std::string& config_folder);
  const ExportPlan& plan() const override { return plan_; }
  const CheckpointReader& plain() const override { return reader_; }
  absl::StatusOr<std::vector<QuantizedModule>> ReadBlock(int64_t block) const override;

 private:
  // A folder with config.json and the tokenizer's files: copies, and what has to be made.
  absl::StatusOr<std::string> ProvideFolder(const std::string& config_folder);
  absl::Status AddTensor(const GgufFamily& family, const TableTensor& tensor,
                         std::vector<TensorInfo>& plain);
  absl::Status AddPlain(PlainTensor tensor, std::vector<TensorInfo>& plain);
  absl::Status CheckNothingElse() const;

  GgufFile file_;
  PlainReader reader_;
  ExportPlan plan_;
  std::unique_ptr<TemporaryFolder> made_files_;
  std::vector<std::vector<QuantizedPart>> blocks_;
  std::set<std::string> used_;  // tensors of the file
  std::vector<std::string> widened_;
};

absl::StatusOr<std::string> GgufCheckpoint::ProvideFolder(const std::string& config_folder) {
  const auto has = [&config_folder](const char* name) {
    return PathExists(JoinPath(config_folder, name));
  };
  const bool has_tokenizer = has("tokenizer.json");
  const bool has_config = has(kConfig);
  std::map<std::string, Json> files;
  if (!has_tokenizer) {
    auto tokenizer = TokenizerFilesOfGguf(file_);
    if (tokenizer.ok()) {
      files = *std::move(tokenizer);
    } else if (absl::IsUnimplemented(tokenizer.status())) {
      plan_.source.warnings.push_back(
          absl::StrCat("the result has no tokenizer: ", Message(tokenizer.status()),
                       "; put the original tokenizer.json beside the .gguf file to have it"));
    } else {
      return tokenizer.status();
    }
  }
  if (!has_config) {
    PTQ_ASSIGN_OR_RETURN(files[kConfig], ConfigOfGguf(file_));
  }
  PTQ_ASSIGN_OR_RETURN(made_files_, TemporaryFolder::Create());
  const std::string& folder = made_files_->path();
  PTQ_ASSIGN_OR_RETURN(const auto names, ListSideFiles(config_folder));
  for (const std::string& name : names) {
    if (files.contains(name)) continue;
    PTQ_RETURN_IF_ERROR(CopyFileAtomically(JoinPath(config_folder, name), JoinPath(folder, name)));
  }
  for (const auto& [name, json] : files) {
    PTQ_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(folder, name), DumpJsonPretty(json)));
  }
  return folder;
}

absl::Status GgufCheckpoint::AddPlain(PlainTensor tensor, std::vector<TensorInfo>& plain) {
  const GgufType type = tensor.info->type;
  tensor.dtype = ScalarTypeOf(type);
  tensor.made =
      IsPlain(type) && (tensor.subtract_one || !tensor.rows.empty() || tensor.table.transposed);
  if (!IsPlain(type)) {
    if (!tensor.rows.empty() || tensor.subtract_one || tensor.table.transposed) {
      return absl::FailedPreconditionError(
          absl::StrCat("tensor ", tensor.info->name, " is ", TraitsOf(type).name,
                       ", which only weights of the blocks' linear layers can be"));
    }
    widened_.push_back(tensor.info->name);
  }
  const auto model_dtype = ToScalarType(plan_.source.config.dtype);
  if (tensor.always_f32 && type == GgufType::kF32 && plan_.source.config.has_dtype &&
      model_dtype.ok() && *model_dtype != at::kFloat) {
    PTQ_ASSIGN_OR_RETURN(const at::Tensor values, reader_.Make(tensor));
    if (values.to(*model_dtype).to(at::kFloat).equal(values)) {
      tensor.dtype = *model_dtype;
      tensor.made = true;
    }
  }
  TensorInfo info;
  info.name = tensor.table.name;
  info.dtype = FromScalarType(tensor.dtype);
  info.shape = tensor.table.stored_shape();
  info.end = ElementsOf(info.shape) * static_cast<int64_t>(c10::elementSize(tensor.dtype));
  plain.push_back(std::move(info));
  reader_.Add(std::move(tensor));
  return absl::OkStatus();
}

absl::Status GgufCheckpoint::AddTensor(const GgufFamily& family, const TableTensor& tensor,
                                       std::vector<TensorInfo>& plain) {
  const ModelConfig& config = plan_.source.config;
  PTQ_ASSIGN_OR_RETURN(GgufPlace place, GgufPlaceOf(family, config, tensor));
  const GgufTensorInfo* info = file_.Find(place.name);
  if (info == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", place.name, " (", tensor.name, ") is missing"));
  }
  std::vector<int64_t> shape = place.shape;
  int64_t parts = 1;
  if (place.expert >= 0) {
    parts = config.experts.router.experts;
    shape.insert(shape.begin(), parts);
  }
  if (info->shape != shape) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", place.name, " has shape ",
                                                   ShapeToString(info->shape), ", but the model ",
                                                   "asks for ", ShapeToString(shape)));
  }
  used_.insert(place.name);
  const int64_t bytes = info->bytes() / parts;
  const int64_t offset = std::max<int64_t>(place.expert, 0) * bytes;
  const auto scheme = SchemeOfGgufType(info->type);
  if (!scheme && !IsPlain(info->type)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "tensor ", place.name, " is ", TraitsOf(info->type).name,
        ", which no record holds; Q8_0, Q4_0, Q5_0, Q4_1, Q5_1 and plain types are read"));
  }
  if (tensor.role != TensorRole::kLinearWeight || tensor.block < 0 || !scheme) {
    if (tensor.role == TensorRole::kLinearWeight && tensor.block >= 0) {
      plan_.skipped.push_back(tensor.module);
    }
    PlainTensor entry;
    entry.info = info;
    entry.offset = offset;
    entry.table = tensor;
    entry.rows = std::move(place.rows);
    entry.subtract_one = place.add_one;
    entry.always_f32 = place.always_f32;
    return AddPlain(std::move(entry), plain);
  }
  QuantizedPart part;
  part.module.module = tensor.module;
  part.module.out_features = tensor.shape[0];
  part.module.in_features = tensor.shape[1];
  part.module.scheme = *scheme;
  part.module.transposed = tensor.transposed;
  part.info = info;
  part.offset = offset;
  part.bytes = bytes;
  part.rows = RowsOf(place);
  blocks_[static_cast<size_t>(tensor.block)].push_back(std::move(part));
  return absl::OkStatus();
}

// Tensors that a file has beside the model's: what follows from config.json, and a head that is the
// embedding once more.
absl::Status GgufCheckpoint::CheckNothingElse() const {
  std::set<std::string> others(std::begin(kGgufRopeTensors), std::end(kGgufRopeTensors));
  if (plan_.source.config.tie_word_embeddings) others.insert("output.weight");
  for (const GgufTensorInfo& tensor : file_.tensors()) {
    if (used_.contains(tensor.name) || others.contains(tensor.name)) continue;
    return absl::InvalidArgumentError(absl::StrCat("tensor ", Quote(tensor.name),
                                                   " is no part of a model of type ",
                                                   plan_.source.config.model_type));
  }
  return absl::OkStatus();
}

absl::Status GgufCheckpoint::Load(const std::string& config_folder) {
  PTQ_ASSIGN_OR_RETURN(const std::string folder, ProvideFolder(config_folder));
  PTQ_ASSIGN_OR_RETURN(const std::string text,
                       ReadFile(JoinPath(folder, kConfig), kMaxConfigBytes));
  CheckpointInspection& source = plan_.source;
  PTQ_ASSIGN_OR_RETURN(source.config, ParseModelConfig(text, &source.warnings));
  source.has_tokenizer = PathExists(JoinPath(folder, "tokenizer.json"));
  PTQ_RETURN_IF_ERROR(CheckGgufConfig(file_, source.config));
  PTQ_ASSIGN_OR_RETURN(const GgufFamily family, GgufFamilyOf(source.config));
  blocks_.resize(static_cast<size_t>(source.config.num_hidden_layers));
  std::vector<TensorInfo> plain;
  for (const TableTensor& tensor : BuildTensorTable(source.config)) {
    PTQ_RETURN_IF_ERROR(AddTensor(family, tensor, plain));
  }
  PTQ_RETURN_IF_ERROR(CheckNothingElse());
  source.index = CheckpointIndex::Of(folder, std::move(plain));
  bool has_minimum = false;
  for (std::vector<QuantizedPart>& block : blocks_) {
    for (QuantizedPart& part : block) {
      part.module.original_dtype = CheckpointDType(source);
      part.module.scale_dtype = DType::kF16;
      plan_.modules.push_back(part.module);
      has_minimum = has_minimum || !part.module.scheme.symmetric;
    }
  }
  if (plan_.modules.empty()) {
    return absl::InvalidArgumentError("no linear layer of the blocks is quantized");
  }
  plan_.default_scheme = CommonScheme(plan_.modules);
  if (has_minimum) {
    source.warnings.push_back(
        "Q4_1 and Q5_1 have minimums in float16: one that a multiple of its group's scale was "
        "rounded to is read as that multiple");
  }
  if (!widened_.empty()) {
    source.warnings.push_back(
        absl::StrCat(ListSome(widened_, 3), widened_.size() == 1 ? " is" : " are",
                     " quantized outside of the blocks' linear layers: kept as the same values in "
                     "float32"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<QuantizedModule>> GgufCheckpoint::ReadBlock(int64_t block) const {
  if (block < 0 || block >= static_cast<int64_t>(blocks_.size())) {
    return absl::InvalidArgumentError(absl::StrCat("there is no block ", block));
  }
  std::vector<QuantizedModule> records;
  for (const QuantizedPart& part : blocks_[static_cast<size_t>(block)]) {
    PTQ_ASSIGN_OR_RETURN(
        AffineQuantizedTensor record,
        CatchTorchErrors(part.module.module, [&]() -> absl::StatusOr<AffineQuantizedTensor> {
          std::string data(static_cast<size_t>(part.bytes), '\0');
          PTQ_RETURN_IF_ERROR(file_.Read(*part.info, part.offset, part.bytes, data.data()));
          PTQ_ASSIGN_OR_RETURN(auto decoded,
                               DecodeGgufRecord(part.module, part.info->type, part.rows, data));
          PTQ_RETURN_IF_ERROR(ValidateRecord(part.module, decoded));
          return decoded;
        }));
    records.push_back({part.module.module, std::move(record)});
  }
  return records;
}

}  // namespace

absl::StatusOr<std::unique_ptr<QuantizedCheckpoint>> OpenGguf(const std::string& path,
                                                              const std::string& config_folder) {
  PTQ_ASSIGN_OR_RETURN(GgufFile file, GgufFile::Open(path));
  auto checkpoint = std::make_unique<GgufCheckpoint>(std::move(file));
  const absl::Status loaded =
      CatchTorchErrors(path, [&] { return checkpoint->Load(config_folder); });
  if (!loaded.ok()) return Annotate(loaded, path);
  return checkpoint;
}

}  // namespace ptq
