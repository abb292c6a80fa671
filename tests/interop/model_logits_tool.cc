// model_logits_tool MODEL_DIR IDS.safetensors OUTPUT.safetensors [MODEL_DIR IDS OUTPUT ...]
//     [--device cpu|cuda] [--dtype DTYPE]
//
// For each three: runs input_ids [samples, length] (int64) of IDS through the model and writes
// "logits" [samples, length, vocabulary] float32. DTYPE: float32, float16, bfloat16, or auto (the
// default: ChooseComputeDtype of config.json's). A model that fails is told on standard error, has
// no output, and makes the exit status 1; the others go on.
#include <CLI/CLI.hpp>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "common/status_macros.h"
#include "common/torch_status.h"
#include "formats/checkpoint_reader.h"
#include "formats/safetensors_writer.h"
#include "models/decoder_model.h"
#include "observers/block_inputs.h"

namespace ptq {
namespace {

struct Arguments {
  std::vector<std::string> files;  // model, ids, output; and so on
  std::string device = "cpu";
  std::string dtype = "auto";
};

absl::StatusOr<at::Tensor> ReadIds(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash);
  PTQ_ASSIGN_OR_RETURN(CheckpointIndex index, CheckpointIndex::Open(folder));
  PTQ_ASSIGN_OR_RETURN(const auto reader, SafetensorsCheckpointReader::Open(std::move(index)));
  return reader->Read("input_ids");
}

absl::StatusOr<at::ScalarType> ComputeDtype(const Arguments& arguments, DType stored) {
  if (arguments.dtype == "float32") return at::kFloat;
  if (arguments.dtype == "float16") return at::kHalf;
  if (arguments.dtype == "bfloat16") return at::kBFloat16;
  PTQ_ASSIGN_OR_RETURN(const at::ScalarType type, ToScalarType(stored));
  return ChooseComputeDtype(at::Device(arguments.device), type);
}

absl::Status Run(const std::string& folder, const std::string& ids_file, const std::string& output,
                 const Arguments& arguments) {
  PTQ_ASSIGN_OR_RETURN(CheckpointInspection inspection, InspectCheckpoint(folder));
  const ModelConfig config = inspection.config;
  PTQ_ASSIGN_OR_RETURN(const auto reader,
                       SafetensorsCheckpointReader::Open(std::move(inspection.index)));
  ComputeOptions options;
  options.device = at::Device(arguments.device);
  PTQ_ASSIGN_OR_RETURN(options.dtype, ComputeDtype(arguments, config.dtype));
  PTQ_ASSIGN_OR_RETURN(const auto model, DecoderModel::Create(config, *reader, options));
  PTQ_ASSIGN_OR_RETURN(const at::Tensor ids, ReadIds(ids_file));
  PTQ_ASSIGN_OR_RETURN(at::Tensor hidden, model->Embed(ids));
  const RotaryTable rotary = model->MakeRotaryTable(ids.size(1));
  for (int64_t i = 0; i < model->block_count(); ++i) {
    PTQ_ASSIGN_OR_RETURN(const auto block, model->LoadBlock(i));
    hidden = RunBlock(*block, hidden, rotary, /*batch=*/4);
  }
  PTQ_ASSIGN_OR_RETURN(const LanguageModelHead head, model->LoadHead());
  return WriteSafetensors(output, {{"logits", head.Logits(hidden)}}, {}).status();
}

}  // namespace
}  // namespace ptq

int main(int argc, char** argv) {
  ptq::Arguments arguments;
  CLI::App app{"Logits of a checkpoint"};
  app.add_option("files", arguments.files)->required();
  app.add_option("--device", arguments.device);
  app.add_option("--dtype", arguments.dtype);
  CLI11_PARSE(app, argc, argv);
  const std::vector<std::string>& files = arguments.files;
  int failures = files.size() % 3 == 0 ? 0 : 1;
  for (size_t i = 0; i + 2 < files.size(); i += 3) {
    const absl::Status status = ptq::CatchTorchErrors(
        "logits", [&] { return ptq::Run(files[i], files[i + 1], files[i + 2], arguments); });
    if (status.ok()) continue;
    std::cerr << files[i] << ": " << status.ToString() << "\n";
    failures = 1;
  }
  return failures;
}
