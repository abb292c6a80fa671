#include "worker/loader_report.h"

#include <utility>

#include "common/status_util.h"
#include "formats/headers/loader_rules/loader_rules.h"

namespace ptq {

Json JudgeFormats(const std::vector<WrittenFormat>& formats) {
  Json verdicts = Json::array();
  for (const WrittenFormat& written : formats) {
    Json entry;
    entry["format"] = written.format;
    const absl::StatusOr<FolderCheck> check = CheckFolder(written.folder);
    if (check.ok()) {
      entry.update(FolderCheckToJson(*check));
    } else {
      entry["error"] = Message(check.status());
    }
    verdicts.push_back(std::move(entry));
  }
  return verdicts;
}

}  // namespace ptq
