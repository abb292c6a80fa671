#include "worker/spec/presets.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "formats/headers/quote.h"
#include "worker/spec/k_quant_mixes.h"

namespace ptq {
namespace {

// The last layer of a block's MLP, by the names of all families; experts have a number before it.
constexpr char kMlpOutput[] = "mlp\\.(down_proj|c_proj|dense_4h_to_h)|feed_forward\\.w2|fc2";

QuantizationScheme Scheme(int bits, int64_t group_size, bool symmetric = true) {
  return {.bits = bits, .group_size = group_size, .symmetric = symmetric};
}

}  // namespace

const std::vector<Preset>& Presets() {
  static const auto* const presets = new std::vector<Preset>{
      {"W8A16", "8 bits, groups of 128, symmetric", Scheme(8, 128)},
      {"W6A16", "6 bits, groups of 128, symmetric", Scheme(6, 128)},
      {"W4A16", "4 bits, groups of 128, symmetric: what a job does without a preset",
       Scheme(4, 128)},
      {"W4A16_ASYM", "4 bits, groups of 128, with zero points", Scheme(4, 128, false)},
      {"W4A16G32", "4 bits, groups of 32, symmetric: also what GGUF's Q4_0 holds", Scheme(4, 32)},
      {"W4A16_M",
       "W4A16 with 8 bits for the MLPs' last layers in half of the blocks, as Q4_K_M "
       "spends its bits",
       Scheme(4, 128), 8},
      {"W3A16G128", "3 bits, groups of 128, symmetric", Scheme(3, 128)},
      {"W3A16_M", "W3A16G128 with 4 bits for the MLPs' last layers in half of the blocks",
       Scheme(3, 128), 4},
      {"W2A16G64", "2 bits, groups of 64, symmetric", Scheme(2, 64)},
      {"W2A16G32", "2 bits, groups of 32, symmetric: half a bit a weight more for scales",
       Scheme(2, 32)},
      {"W2A16_M", "W2A16G64 with 4 bits for the MLPs' last layers in half of the blocks",
       Scheme(2, 64), 4},
      {"Q2_K", "llama.cpp's mix for GGUF: Q2_K, with Q3_K and Q4_K where it costs most",
       KQuantScheme(KQuant::kQ2_K)},
      {"Q3_K_M", "llama.cpp's mix for GGUF: Q3_K, with Q4_K and Q5_K where it costs most",
       KQuantScheme(KQuant::kQ3_K)},
      {"Q4_K_S", "llama.cpp's mix for GGUF: Q4_K, with Q5_K in the first blocks",
       KQuantScheme(KQuant::kQ4_K)},
      {"Q4_K_M",
       "llama.cpp's mix for GGUF: Q4_K, with Q6_K for v and the MLPs' last layers in "
       "half of the blocks",
       KQuantScheme(KQuant::kQ4_K)},
      {"Q5_K_M",
       "llama.cpp's mix for GGUF: Q5_K, with Q6_K for v and the MLPs' last layers in "
       "half of the blocks",
       KQuantScheme(KQuant::kQ5_K)},
      {"Q6_K", "llama.cpp's Q6_K for GGUF", KQuantScheme(KQuant::kQ6_K)},
  };
  return *presets;
}

std::string PresetNames(const char* separator) {
  return absl::StrJoin(Presets(), separator,
                       [](std::string* out, const Preset& preset) { out->append(preset.name); });
}

absl::StatusOr<Preset> FindPreset(const std::string& name) {
  const auto found = std::find_if(Presets().begin(), Presets().end(), [&name](const Preset& one) {
    return absl::EqualsIgnoreCase(name, one.name);
  });
  if (found != Presets().end()) return *found;
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is none of %s", Quote(name), PresetNames(", ")));
}

std::vector<std::string> PresetRules(const Preset& preset, int64_t block_count) {
  if (preset.scheme.k_quant != KQuant::kNone) return KQuantMixRules(preset.name, block_count);
  if (preset.wider_bits == 0) return {};
  std::vector<int64_t> blocks;
  for (int64_t block = 0; block < block_count; ++block) {
    if (UsesMoreBits(block, block_count)) blocks.push_back(block);
  }
  if (blocks.empty()) return {};
  return {absl::StrFormat(".*\\.(%s)\\.(%s):bits=%d", absl::StrJoin(blocks, "|"), kMlpOutput,
                          preset.wider_bits)};
}

}  // namespace ptq
