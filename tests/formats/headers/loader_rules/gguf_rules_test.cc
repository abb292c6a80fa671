// llama.cpp's rules over headers of GGUF files, and the header's own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "formats/headers/loader_rules/gguf_header.h"
#include "formats/headers/loader_rules/loader_rules.h"
#include "tests/formats/headers/header_testing.h"

namespace ptq {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using testing::FolderTest;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::IsOk;
using testing::StatusIs;

template <typename T>
std::string Bytes(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

std::string TextBytes(const std::string& text) { return Bytes<uint64_t>(text.size()) + text; }

// A value with its type's number.
std::string U32(uint32_t value) { return Bytes<uint32_t>(4) + Bytes(value); }
std::string F32(float value) { return Bytes<uint32_t>(6) + Bytes(value); }
std::string Text(const std::string& text) { return Bytes<uint32_t>(8) + TextBytes(text); }
std::string Texts(size_t count) {
  std::string bytes = Bytes<uint32_t>(9) + Bytes<uint32_t>(8) + Bytes<uint64_t>(count);
  for (size_t i = 0; i < count; ++i) bytes += TextBytes("t" + std::to_string(i));
  return bytes;
}
std::string Floats(size_t count) {
  return Bytes<uint32_t>(9) + Bytes<uint32_t>(6) + Bytes<uint64_t>(count) +
         std::string(4 * count, '\0');
}

constexpr uint32_t kF32 = 0;
constexpr uint32_t kQ4_0 = 2;

struct Tensor {
  std::string name;
  std::vector<uint64_t> sizes;  // fastest first
  uint32_t type = kF32;
  int64_t shift = 0;  // of its offset, to break it
};

// A Llama of one block of width 64 with 8 tokens.
struct Model {
  uint32_t version = 3;
  std::map<std::string, std::string> values = {
      {"general.architecture", Text("llama")},
      {"llama.context_length", U32(64)},
      {"llama.embedding_length", U32(64)},
      {"llama.block_count", U32(1)},
      {"llama.feed_forward_length", U32(96)},
      {"llama.attention.head_count", U32(4)},
      {"llama.attention.head_count_kv", U32(2)},
      {"llama.attention.layer_norm_rms_epsilon", F32(1e-5F)},
      {"tokenizer.ggml.model", Text("llama")},
      {"tokenizer.ggml.tokens", Texts(8)},
      {"tokenizer.ggml.scores", Floats(8)}};
  std::vector<Tensor> tensors = {{"token_embd.weight", {64, 8}},
                                 {"output_norm.weight", {64}},
                                 {"blk.0.attn_norm.weight", {64}},
                                 {"blk.0.attn_q.weight", {64, 64}, kQ4_0},
                                 {"blk.0.attn_k.weight", {64, 32}, kQ4_0},
                                 {"blk.0.attn_v.weight", {64, 32}, kQ4_0},
                                 {"blk.0.attn_output.weight", {64, 64}, kQ4_0},
                                 {"blk.0.ffn_norm.weight", {64}},
                                 {"blk.0.ffn_gate.weight", {64, 96}, kQ4_0},
                                 {"blk.0.ffn_up.weight", {64, 96}, kQ4_0},
                                 {"blk.0.ffn_down.weight", {96, 64}, kQ4_0}};
  std::string magic = "GGUF";
  size_t cut = 0;  // bytes off the end

  void Erase(const std::string& name) {
    std::erase_if(tensors, [&name](const Tensor& one) { return one.name == name; });
  }
  Tensor& tensor(const std::string& name) {
    for (Tensor& one : tensors) {
      if (one.name == name) return one;
    }
    ADD_FAILURE() << name;
    return tensors.front();
  }
};

std::string FileOf(const Model& model) {
  std::string file = model.magic + Bytes(model.version) + Bytes<uint64_t>(model.tensors.size()) +
                     Bytes<uint64_t>(model.values.size());
  for (const auto& [key, value] : model.values) file += TextBytes(key) + value;
  int64_t offset = 0;
  for (const Tensor& tensor : model.tensors) {
    file += TextBytes(tensor.name) + Bytes(static_cast<uint32_t>(tensor.sizes.size()));
    int64_t elements = 1;
    for (const uint64_t size : tensor.sizes) {
      file += Bytes(size);
      elements *= static_cast<int64_t>(size);
    }
    file += Bytes(tensor.type) + Bytes<uint64_t>(static_cast<uint64_t>(offset + tensor.shift));
    const GgmlType* type = FindGgmlType(tensor.type);
    if (type != nullptr) offset += elements / type->block_elements * type->block_bytes;
    offset = (offset + 31) / 32 * 32;
  }
  file.resize((file.size() + 31) / 32 * 32 + static_cast<size_t>(offset));
  file.resize(file.size() - model.cut);
  return file;
}

class GgufRulesTest : public FolderTest {
 protected:
  LoaderVerdict Judge(const Model& model, Loader loader = Loader::kLlamaCpp) {
    Write("model.gguf", FileOf(model));
    const auto check = CheckFolder(folder_);
    EXPECT_THAT(check, IsOk());
    return check.ok() ? check->verdicts[static_cast<size_t>(loader)] : LoaderVerdict();
  }
};

TEST_F(GgufRulesTest, WholeFileLoads) {
  const LoaderVerdict verdict = Judge(Model());
  EXPECT_EQ(verdict.verdict, Verdict::kLoads);
  EXPECT_THAT(verdict.problems, IsEmpty());
  EXPECT_THAT(verdict.remarks, IsEmpty());
  for (const Loader other : {Loader::kTransformers, Loader::kVllm, Loader::kSglang}) {
    EXPECT_EQ(Judge(Model(), other).verdict, Verdict::kLoadsWithRemark);
  }
  const auto file = CheckFolder(Path("model.gguf"));
  ASSERT_THAT(file, IsOk());
  EXPECT_EQ(file->method, "gguf");
  EXPECT_EQ(file->quantized_layers, 7);
}

struct Break {
  const char* name;
  std::function<void(Model&)> change;
  const char* sentence;
};
void PrintTo(const Break& one, std::ostream* out) { *out << one.name; }

class GgufBreakTest : public GgufRulesTest, public ::testing::WithParamInterface<Break> {};

TEST_P(GgufBreakTest, GetsTheSentence) {
  Model model;
  GetParam().change(model);
  const LoaderVerdict verdict = Judge(model);
  EXPECT_EQ(verdict.verdict, Verdict::kDoesNotLoad);
  EXPECT_THAT(verdict.problems, ElementsAre(HasSubstr(GetParam().sentence)));
}

INSTANTIATE_TEST_SUITE_P(
    Rules, GgufBreakTest,
    ::testing::Values(
        Break{"magic", [](Model& m) { m.magic = "GGML"; }, "does not begin with GGUF"},
        Break{"version", [](Model& m) { m.version = 1; },
              "version 1, where llama.cpp reads 2 and 3"},
        Break{"alignment", [](Model& m) { m.values["general.alignment"] = U32(24); },
              "general.alignment 24 is no power of two"},
        Break{"type", [](Model& m) { m.tensors.back().type = 77; }, "has the type 77"},
        Break{"value_type", [](Model& m) { m.values["x"] = Bytes<uint32_t>(99); },
              "key \"x\": unknown type 99"},
        Break{"long_array",
              [](Model& m) {
                m.values["x"] = Bytes<uint32_t>(9) + Bytes<uint32_t>(4) + Bytes<uint64_t>(1 << 30);
              },
              "an array is longer than the file"},
        Break{"cut_off", [](Model& m) { m.cut = 200; }, "it is cut off"},
        Break{"offset", [](Model& m) { m.tensors[4].shift = 32; },
              "blk.0.attn_k.weight: its data begin at"},
        Break{"blocks",
              [](Model& m) {
                m.tensor("blk.0.ffn_down.weight").sizes = {80, 64};
              },
              "rows of 80 do not divide into Q4_0's blocks of 32"},
        Break{"twice", [](Model& m) { m.tensors.push_back(m.tensors[1]); },
              "\"output_norm.weight\": the tensor is there twice"},
        Break{"long_name",
              [](Model& m) {
                m.tensors.push_back({std::string(64, 'x'), {32}});
              },
              "the name has more than 63 bytes"},
        Break{"no_architecture", [](Model& m) { m.values.erase("general.architecture"); },
              "general.architecture: the key is missing"},
        Break{"no_block_count", [](Model& m) { m.values.erase("llama.block_count"); },
              "llama.block_count: the key is missing"},
        Break{"no_epsilon",
              [](Model& m) { m.values.erase("llama.attention.layer_norm_rms_epsilon"); },
              "llama.attention.layer_norm_rms_epsilon: the key is missing"},
        Break{"no_tokens", [](Model& m) { m.values.erase("tokenizer.ggml.tokens"); },
              "tokenizer.ggml.tokens: the key is missing"},
        Break{"no_scores", [](Model& m) { m.values.erase("tokenizer.ggml.scores"); },
              "tokenizer.ggml.scores: the key is missing"},
        Break{"no_merges",
              [](Model& m) {
                m.values["tokenizer.ggml.model"] = Text("gpt2");
                m.values["tokenizer.ggml.pre"] = Text("llama-bpe");
              },
              "tokenizer.ggml.merges: the key is missing"},
        Break{"token_count", [](Model& m) { m.values["tokenizer.ggml.tokens"] = Texts(7); },
              "has 8 rows, where tokenizer.ggml.tokens lists 7 tokens"},
        Break{"missing_tensor", [](Model& m) { m.Erase("blk.0.attn_v.weight"); },
              "blk.0.attn_v.weight: the tensor is missing"},
        Break{"missing_feed_forward", [](Model& m) { m.Erase("blk.0.ffn_up.weight"); },
              "neither ffn_gate, ffn_up and ffn_down nor their experts"},
        Break{"query_shape",
              [](Model& m) {
                m.tensor("blk.0.attn_q.weight").sizes = {64, 96};
              },
              "blk.0.attn_q.weight: has shape [96, 64], where the keys ask for [64, 64]"},
        Break{"key_heads", [](Model& m) { m.values["llama.attention.head_count_kv"] = U32(4); },
              "blk.0.attn_k.weight: has shape [32, 64], where the keys ask for [64, 64]"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST_F(GgufRulesTest, UnknownArchitectureIsNotChecked) {
  Model model;
  model.values["general.architecture"] = Text("mamba9");
  const LoaderVerdict verdict = Judge(model);
  EXPECT_EQ(verdict.verdict, Verdict::kNotChecked);
  EXPECT_THAT(verdict.remarks, Contains(HasSubstr("\"mamba9\" are not known here")));
}

TEST_F(GgufRulesTest, EveryCutOfTheHeaderIsAnError) {
  const std::string whole = FileOf(Model());
  for (size_t size = 0; size < 1200; size += 7) {
    Write("cut.gguf", whole.substr(0, size));
    const auto file = ReadableFile::Open(Path("cut.gguf"));
    ASSERT_THAT(file, IsOk());
    EXPECT_FALSE(ReadGgufHeader(*file).ok()) << size;
  }
}

TEST_F(GgufRulesTest, RepeatedKeyIsAnError) {
  Model model;
  std::string file = FileOf(model);
  // The two keys have one length.
  const std::string other = "llama.context_length";
  model.values["llama.context_lengti"] = U32(64);
  file = FileOf(model);
  file.replace(file.find("llama.context_lengti"), other.size(), other);
  Write("twice.gguf", file);
  const auto opened = ReadableFile::Open(Path("twice.gguf"));
  ASSERT_THAT(opened, IsOk());
  EXPECT_THAT(ReadGgufHeader(*opened),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("is there twice")));
}

}  // namespace
}  // namespace ptq
