// The awq format, GEMM version: 4 bits with zero points, one group size for all layers.
#include <memory>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "formats/awq_packing.h"
#include "formats/headers/quote.h"
#include "formats/safetensors_format.h"

namespace ptq {
namespace {

constexpr char kName[] = "awq";

class AwqFormat final : public SafetensorsFormat {
 public:
  std::string name() const override { return kName; }

 protected:
  std::unique_ptr<WeightPacking> PackingFor(const ExportPlan&) const override {
    return MakeAwqPacking(kName);
  }

  FolderConfig ConfigFor(const ExportPlan& plan) const override {
    Json plain = PlainHead(plan);
    for (const std::string& module : PlainLinears(plan)) plain.push_back(module);
    const int64_t group = CommonScheme(plan.modules).group_size;
    Json config = {
        {"quant_method", "awq"}, {"bits", 4},         {"group_size", group > 0 ? group : -1},
        {"zero_point", true},    {"version", "gemm"}, {"modules_to_not_convert", std::move(plain)}};
    // In another dtype loaders would round the scales again.
    return {.quantization = std::move(config), .dtype = DType::kF16, .files = {}};
  }

  class AwqReading final : public Reading {
   public:
    static absl::StatusOr<std::unique_ptr<Reading>> Create(const Json& config) {
      auto reading = std::make_unique<AwqReading>();
      const char* bits_key = config.contains("bits") ? "bits" : "w_bit";
      const char* group_key = config.contains("group_size") ? "group_size" : "q_group_size";
      PTQ_ASSIGN_OR_RETURN(const int64_t bits, JsonInt(config, bits_key));
      PTQ_ASSIGN_OR_RETURN(const int64_t group, JsonInt(config, group_key));
      PTQ_ASSIGN_OR_RETURN(const std::string version, JsonString(config, "version", "gemm"));
      if (bits != 4) {
        return absl::FailedPreconditionError(
            absl::StrCat("quantization_config: ", bits_key, " is ", bits, ", not 4"));
      }
      if (absl::AsciiStrToLower(version) != "gemm") {
        return absl::FailedPreconditionError("quantization_config: version " + Quote(version) +
                                             " is not gemm");
      }
      reading->scheme_ = {.bits = 4,
                          .group_size = group > 0 ? group : QuantizationScheme::kPerChannel,
                          .symmetric = false};
      return reading;
    }
    const WeightPacking& packing() const override { return *packing_; }
    bool knows_symmetry() const override { return false; }
    absl::StatusOr<std::optional<QuantizationScheme>> SchemeOf(const std::string&) const override {
      return scheme_;
    }

   private:
    QuantizationScheme scheme_;
    std::unique_ptr<WeightPacking> packing_ = MakeAwqPacking(kName);
  };

  absl::StatusOr<std::unique_ptr<Reading>> Read(const Json& quantization_config,
                                                const CheckpointIndex&) const override {
    return AwqReading::Create(quantization_config);
  }
};

}  // namespace

std::unique_ptr<CheckpointFormat> MakeAwqFormat() { return std::make_unique<AwqFormat>(); }

}  // namespace ptq
