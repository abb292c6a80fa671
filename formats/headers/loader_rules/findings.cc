#include "formats/headers/loader_rules/findings.h"

#include <algorithm>

#include "formats/headers/quote.h"

namespace ptq {
namespace {

constexpr size_t kMostSubjects = 3;

}  // namespace

void Findings::Refuse(const std::string& subject, const std::string& text) {
  refused_ = true;
  Add(true, subject, text);
}

void Findings::Remark(const std::string& subject, const std::string& text) {
  Add(false, subject, text);
}

void Findings::NotChecked(const std::string& text) {
  not_checked_ = true;
  Add(false, "", text);
}

void Findings::Add(bool refusing, const std::string& subject, const std::string& text) {
  const auto same = std::find_if(findings_.begin(), findings_.end(), [&](const Finding& finding) {
    return finding.refusing == refusing && finding.text == text;
  });
  Finding& finding =
      same == findings_.end() ? findings_.emplace_back(Finding{refusing, text, {}}) : *same;
  if (!subject.empty()) finding.subjects.push_back(subject);
}

std::vector<std::string> Findings::Sentences(bool refusing) const {
  std::vector<std::string> sentences;
  for (const Finding& finding : findings_) {
    if (finding.refusing != refusing) continue;
    sentences.push_back(finding.subjects.empty()
                            ? finding.text
                            : ListSome(finding.subjects, kMostSubjects) + ": " + finding.text);
  }
  return sentences;
}

}  // namespace ptq
