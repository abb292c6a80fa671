#include "formats/headers/gguf_types.h"

#include <string>

#include "absl/strings/str_cat.h"

namespace ptq {
namespace {

constexpr int64_t kBlock = 32;

}  // namespace

GgufTypeTraits TraitsOf(GgufType type) {
  switch (type) {
    case GgufType::kF32:
      return {"F32", 1, 4};
    case GgufType::kF16:
      return {"F16", 1, 2};
    case GgufType::kQ4_0:
      return {"Q4_0", 32, 18};
    case GgufType::kQ4_1:
      return {"Q4_1", 32, 20};
    case GgufType::kQ5_0:
      return {"Q5_0", 32, 22};
    case GgufType::kQ5_1:
      return {"Q5_1", 32, 24};
    case GgufType::kQ8_0:
      return {"Q8_0", 32, 34};
    case GgufType::kQ2_K:
    case GgufType::kQ3_K:
    case GgufType::kQ4_K:
    case GgufType::kQ5_K:
    case GgufType::kQ6_K:
      return {KQuantName(KQuantOf(type)), kSuperBlock, TraitsOf(KQuantOf(type)).bytes};
    case GgufType::kBF16:
      return {"BF16", 1, 2};
  }
  return {nullptr, 1, 0};
}

bool HasMinimum(GgufType type) { return type == GgufType::kQ4_1 || type == GgufType::kQ5_1; }

KQuant KQuantOf(GgufType type) {
  const auto number = static_cast<uint32_t>(type);
  const auto first = static_cast<uint32_t>(GgufType::kQ2_K);
  if (number < first || number >= first + kKQuantNames.size()) return KQuant::kNone;
  return static_cast<KQuant>(number - first + 1);
}

absl::StatusOr<GgufType> GgufTypeOf(const PlannedModule& module) {
  const QuantizationScheme& scheme = module.scheme;
  const auto refuse = [&module](const std::string& why) {
    return absl::FailedPreconditionError(
        absl::StrCat("format: gguf can't hold ", module.module, ": ", why));
  };
  if (scheme.k_quant != KQuant::kNone) {
    if (module.in_features % kSuperBlock == 0) {
      return static_cast<GgufType>(static_cast<uint32_t>(GgufType::kQ2_K) +
                                   static_cast<uint32_t>(scheme.k_quant) - 1);
    }
    return refuse(absl::StrCat(KQuantName(scheme.k_quant), " has super-blocks of 256 columns, and ",
                               "there are ", module.in_features,
                               "; give it another scheme by a rule"));
  }
  if (module.in_features % kBlock != 0) {
    return refuse(absl::StrCat("its blocks are 32 columns wide, and there are ", module.in_features,
                               "; leave it out by a rule, or use compressed-tensors or affine"));
  }
  if (scheme.group_size > 0 && scheme.group_size % kBlock != 0) {
    return refuse(absl::StrCat("a group of ", scheme.group_size,
                               " columns does not fill its blocks of 32; use group size 32 or a "
                               "multiple of it, or compressed-tensors or affine"));
  }
  if (scheme.bits == 4) return scheme.symmetric ? GgufType::kQ4_0 : GgufType::kQ4_1;
  if (scheme.bits == 5) return scheme.symmetric ? GgufType::kQ5_0 : GgufType::kQ5_1;
  if (scheme.bits == 8 && scheme.symmetric) return GgufType::kQ8_0;
  return refuse(absl::StrCat("it has no type for ", scheme.bits, " bits, ",
                             scheme.symmetric ? "symmetric" : "asymmetric",
                             "; use 4, 5 or (symmetric) 8 bits, or compressed-tensors or affine"));
}

}  // namespace ptq
