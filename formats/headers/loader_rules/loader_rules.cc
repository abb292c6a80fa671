#include "formats/headers/loader_rules/loader_rules.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "common/file.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/headers/loader_rules/loaders.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

constexpr char kGguf[] = ".gguf";

LoaderVerdict Judge(Loader loader, const Findings& findings, std::string needs) {
  LoaderVerdict verdict;
  verdict.loader = loader;
  verdict.problems = findings.Problems();
  verdict.remarks = findings.Remarks();
  verdict.needs = std::move(needs);
  verdict.verdict = findings.refused()         ? Verdict::kDoesNotLoad
                    : findings.not_checked()   ? Verdict::kNotChecked
                    : !verdict.remarks.empty() ? Verdict::kLoadsWithRemark
                                               : Verdict::kLoads;
  return verdict;
}

LoaderVerdict JudgeFolder(Loader loader, const LoadedFolder& folder) {
  Findings findings = folder.faults;
  std::string needs;
  if (loader == Loader::kLlamaCpp) {
    CheckLlamaCpp(folder, &findings);
  } else if (!folder.known) {
    findings.NotChecked("The rules of these " + Quote(folder.method) +
                        " files are not known here, so they were not checked.");
  } else if (!findings.refused()) {
    if (loader == Loader::kTransformers) CheckTransformers(folder, &findings, &needs);
    if (loader == Loader::kVllm) CheckVllm(folder, &findings, &needs);
    if (loader == Loader::kSglang) CheckSglang(folder, &findings, &needs);
  }
  return Judge(loader, findings, std::move(needs));
}

LoaderVerdict JudgeGguf(Loader loader, const GgufHeader& header) {
  Findings findings;
  std::string needs;
  if (loader == Loader::kTransformers) CheckGgufForTransformers(header, &findings, &needs);
  if (loader == Loader::kVllm) CheckGgufForVllm(header, &findings, &needs);
  if (loader == Loader::kSglang) CheckGgufForSglang(header, &findings, &needs);
  if (loader == Loader::kLlamaCpp) CheckGgufForLlamaCpp(header, &findings);
  return Judge(loader, findings, std::move(needs));
}

// Types whose elements are codes.
bool IsQuantized(const GgufTensor& tensor) { return FindGgmlType(tensor.type)->block_elements > 1; }

absl::StatusOr<FolderCheck> CheckGgufFile(const std::string& path) {
  PTQ_ASSIGN_OR_RETURN(const ReadableFile file, ReadableFile::Open(path));
  const absl::StatusOr<GgufHeader> header = ReadGgufHeader(file);
  FolderCheck check;
  check.method = "gguf";
  for (size_t i = 0; i < kLoaderNames.size(); ++i) {
    const auto loader = static_cast<Loader>(i);
    if (header.ok()) {
      check.verdicts[i] = JudgeGguf(loader, *header);
      continue;
    }
    Findings findings;
    findings.Refuse(BaseName(path), Message(header.status()));
    check.verdicts[i] = Judge(loader, findings, "");
  }
  if (header.ok()) {
    check.quantized_layers =
        std::count_if(header->tensors.begin(), header->tensors.end(), IsQuantized);
  }
  return check;
}

}  // namespace

const char* LoaderName(Loader loader) { return kLoaderNames[static_cast<size_t>(loader)]; }
const char* VerdictName(Verdict verdict) { return kVerdictNames[static_cast<size_t>(verdict)]; }

absl::StatusOr<Loader> ParseLoader(const std::string& name) {
  for (size_t i = 0; i < kLoaderNames.size(); ++i) {
    if (name == kLoaderNames[i]) return static_cast<Loader>(i);
  }
  return absl::InvalidArgumentError("loader " + Quote(name) + " is none of " +
                                    absl::StrJoin(kLoaderNames, ", "));
}

absl::StatusOr<FolderCheck> CheckFolder(const std::string& path) {
  if (!PathExists(path)) return absl::NotFoundError(Quote(path) + " does not exist");
  if (!IsDirectory(path)) {
    if (absl::EndsWith(path, kGguf)) return CheckGgufFile(path);
    return absl::InvalidArgumentError(Quote(path) + " is neither a folder nor a .gguf file");
  }
  PTQ_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListDirectory(path));
  std::vector<std::string> gguf;
  for (const std::string& name : names) {
    if (absl::EndsWith(name, kGguf)) gguf.push_back(name);
  }
  if (gguf.size() > 1) {
    return absl::InvalidArgumentError("the folder holds several .gguf files (" + ListSome(gguf, 3) +
                                      "): name one of them");
  }
  if (gguf.size() == 1) return CheckGgufFile(JoinPath(path, gguf.front()));
  PTQ_ASSIGN_OR_RETURN(const LoadedFolder folder, ReadLoadedFolder(path));
  FolderCheck check;
  check.method = folder.method;
  check.quantized_layers = static_cast<int64_t>(folder.layers.size());
  for (size_t i = 0; i < kLoaderNames.size(); ++i) {
    check.verdicts[i] = JudgeFolder(static_cast<Loader>(i), folder);
  }
  return check;
}

Json FolderCheckToJson(const FolderCheck& check) {
  Json json;
  json["method"] = check.method;
  json["quantized_layers"] = check.quantized_layers;
  json["loaders"] = Json::array();
  for (const LoaderVerdict& verdict : check.verdicts) {
    Json entry;
    entry["loader"] = LoaderName(verdict.loader);
    entry["verdict"] = VerdictName(verdict.verdict);
    entry["problems"] = verdict.problems;
    entry["remarks"] = verdict.remarks;
    entry["needs"] = verdict.needs.empty() ? Json(nullptr) : Json(verdict.needs);
    json["loaders"].push_back(std::move(entry));
  }
  return json;
}

}  // namespace ptq
