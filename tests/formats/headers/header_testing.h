// Checkpoints made of headers and zeros, for tests that never look at weights.
#ifndef PTQ_TESTS_FORMATS_HEADERS_HEADER_TESTING_H_
#define PTQ_TESTS_FORMATS_HEADERS_HEADER_TESTING_H_

#include <gtest/gtest.h>
#include <time.h>

#include <cstdint>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "common/file.h"
#include "common/json.h"
#include "formats/headers/dtype.h"
#include "formats/headers/model_config.h"
#include "formats/headers/tensor_table.h"
#include "tests/testing/status_matchers.h"

namespace ptq::testing {

// An empty folder of its own for every test.
class FolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = ::testing::TempDir() + "/" + info->test_suite_name() + "." + info->name();
    ASSERT_THAT(RemoveTree(folder_), IsOk());
    ASSERT_THAT(MakeDirectories(folder_), IsOk());
  }
  void TearDown() override { EXPECT_THAT(RemoveTree(folder_), IsOk()); }

  std::string Path(const std::string& name) const { return JoinPath(folder_, name); }
  void Write(const std::string& name, const std::string& data) const {
    std::ofstream(Path(name), std::ios::binary) << data;
  }

  std::string folder_;
};

// Processor seconds of this process: what a busy machine does not change.
inline double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// A tensor to be: name, dtype and shape.
struct TensorSketch {
  std::string name;
  DType dtype = DType::kBF16;
  std::vector<int64_t> shape;

  int64_t bytes() const {
    int64_t bits = DTypeBits(dtype);
    for (const int64_t size : shape) bits *= size;
    return bits / 8;
  }
};

inline std::string LengthPrefix(uint64_t length) {
  std::string prefix(8, '\0');
  for (char& byte : prefix) {
    byte = static_cast<char>(length & 0xff);
    length >>= 8;
  }
  return prefix;
}

// The header of these tensors one after the other, as JSON.
inline Json HeaderOf(const std::vector<TensorSketch>& tensors) {
  Json header = Json::object();
  auto& members = header.get_ref<Json::object_t&>();  // no linear search for every name
  members.emplace_back("__metadata__", Json{{"format", "pt"}});
  int64_t offset = 0;
  for (const TensorSketch& tensor : tensors) {
    members.emplace_back(tensor.name, Json{{"dtype", DTypeName(tensor.dtype)},
                                           {"shape", tensor.shape},
                                           {"data_offsets", {offset, offset + tensor.bytes()}}});
    offset += tensor.bytes();
  }
  return header;
}

// A whole safetensors file with zeros for data.
inline std::string SafetensorsFile(const std::vector<TensorSketch>& tensors) {
  const std::string header = DumpJson(HeaderOf(tensors));
  int64_t data_bytes = 0;
  for (const TensorSketch& tensor : tensors) data_bytes += tensor.bytes();
  return LengthPrefix(header.size()) + header + std::string(static_cast<size_t>(data_bytes), '\0');
}

// A Llama of two blocks, small in every direction.
inline Json TinyConfig() {
  return Json{{"architectures", {"LlamaForCausalLM"}},
              {"model_type", "llama"},
              {"vocab_size", 32},
              {"hidden_size", 16},
              {"intermediate_size", 24},
              {"num_hidden_layers", 2},
              {"num_attention_heads", 4},
              {"num_key_value_heads", 2},
              {"max_position_embeddings", 64},
              {"dtype", "bfloat16"}};
}

inline ModelConfig TinyModelConfig(const Json& changes = Json::object()) {
  Json json = TinyConfig();
  json.update(changes);
  std::vector<std::string> warnings;
  auto config = ParseModelConfig(DumpJson(json), &warnings);
  EXPECT_THAT(config, IsOk());
  return config.ok() ? *config : ModelConfig();
}

// All tensors that a checkpoint of `config` has.
inline std::vector<TensorSketch> TensorsOf(const ModelConfig& config) {
  std::vector<TensorSketch> tensors;
  for (const TableTensor& row : BuildTensorTable(config)) {
    tensors.push_back({row.name, DType::kBF16, row.stored_shape()});
  }
  return tensors;
}

inline TensorSketch* FindSketch(std::vector<TensorSketch>* tensors, const std::string& name) {
  for (TensorSketch& tensor : *tensors) {
    if (tensor.name == name) return &tensor;
  }
  return nullptr;
}

inline void EraseSketch(std::vector<TensorSketch>* tensors, const std::string& name) {
  std::erase_if(*tensors, [&name](const TensorSketch& tensor) { return tensor.name == name; });
}

}  // namespace ptq::testing

#endif  // PTQ_TESTS_FORMATS_HEADERS_HEADER_TESTING_H_
