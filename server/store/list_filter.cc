#include "server/store/list_filter.h"

#include <cctype>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "common/time.h"
#include "server/errors/status_details.h"

namespace ptq {
namespace {

constexpr size_t kMaxBytes = 1024;
constexpr size_t kMaxTerms = 16;

// A cursor over the text; every error names where it stands.
class FilterParser {
 public:
  explicit FilterParser(const std::string& text) : text_(text) {}

  absl::StatusOr<std::vector<FilterTerm>> Parse() {
    std::vector<FilterTerm> terms;
    SkipSpace();
    if (AtEnd()) return terms;
    while (true) {
      if (terms.size() == kMaxTerms) {
        return Error(position_, absl::StrFormat("more than %d comparisons", kMaxTerms));
      }
      PTQ_ASSIGN_OR_RETURN(FilterTerm term, ParseTerm());
      terms.push_back(std::move(term));
      SkipSpace();
      if (AtEnd()) return terms;
      const size_t start = position_;
      if (TakeWord() != "AND") return Error(start, "expected AND");
      SkipSpace();
    }
  }

 private:
  absl::StatusOr<FilterTerm> ParseTerm() {
    FilterTerm term;
    const size_t start = position_;
    const std::string field = TakeWord();
    if (field == "state") {
      term.field = FilterTerm::Field::kState;
    } else if (field == "create_time") {
      term.field = FilterTerm::Field::kCreateTime;
    } else if (field == "labels." && Peek() == '"') {
      term.field = FilterTerm::Field::kLabel;
      PTQ_ASSIGN_OR_RETURN(term.label, TakeQuoted());
    } else if (field.size() > 7 && field.substr(0, 7) == "labels.") {
      term.field = FilterTerm::Field::kLabel;
      term.label = field.substr(7);
    } else {
      return Error(start, "expected state, create_time or labels.KEY");
    }
    SkipSpace();
    const size_t operator_start = position_;
    PTQ_ASSIGN_OR_RETURN(term.op, TakeOperator());
    if (term.field != FilterTerm::Field::kCreateTime && term.op != FilterTerm::Operator::kEqual) {
      return Error(operator_start, "only = compares states and labels");
    }
    SkipSpace();
    const size_t value_start = position_;
    term.position = value_start + 1;
    if (Peek() == '"') {
      PTQ_ASSIGN_OR_RETURN(term.text, TakeQuoted());
    } else {
      term.text = TakeWord();
      if (term.text.empty()) return Error(value_start, "expected a value");
    }
    if (term.field == FilterTerm::Field::kCreateTime) {
      auto time = ParseRfc3339(term.text);
      if (!time.ok()) {
        return Error(value_start, "expected a time such as \"2026-01-01T00:00:00Z\"");
      }
      term.time = *time;
    }
    return term;
  }

  absl::StatusOr<FilterTerm::Operator> TakeOperator() {
    using Operator = FilterTerm::Operator;
    const char first = Peek();
    if (first != '=' && first != '<' && first != '>') {
      return Error(position_, "expected one of = < <= > >=");
    }
    ++position_;
    const bool or_equal = first != '=' && Peek() == '=';
    if (or_equal) ++position_;
    if (first == '=') return Operator::kEqual;
    if (first == '<') return or_equal ? Operator::kLessOrEqual : Operator::kLess;
    return or_equal ? Operator::kGreaterOrEqual : Operator::kGreater;
  }

  absl::StatusOr<std::string> TakeQuoted() {
    const size_t start = position_;
    std::string value;
    for (++position_; !AtEnd(); ++position_) {
      char c = text_[position_];
      if (c == '"') {
        ++position_;
        return value;
      }
      if (c == '\\') {
        if (++position_ == text_.size()) break;
        c = text_[position_];
        if (c != '"' && c != '\\') return Error(position_, "only \\\" and \\\\ are escapes");
      }
      value.push_back(c);
    }
    return Error(start, "the quote is not closed");
  }

  std::string TakeWord() {
    const size_t start = position_;
    while (!AtEnd() && (std::isalnum(static_cast<unsigned char>(text_[position_])) ||
                        std::string("_-.:/+").find(text_[position_]) != std::string::npos)) {
      ++position_;
    }
    return text_.substr(start, position_ - start);
  }

  void SkipSpace() {
    while (!AtEnd() && text_[position_] == ' ') ++position_;
  }
  bool AtEnd() const { return position_ >= text_.size(); }
  char Peek() const { return AtEnd() ? '\0' : text_[position_]; }
  static absl::Status Error(size_t position, const std::string& message) {
    return InvalidField("filter", absl::StrFormat("at position %d: %s", position + 1, message));
  }

  const std::string& text_;
  size_t position_ = 0;
};

}  // namespace

absl::StatusOr<std::vector<FilterTerm>> ParseListFilter(const std::string& filter) {
  if (filter.size() > kMaxBytes) {
    return InvalidField("filter", absl::StrFormat("at position %d: a filter has at most %d bytes",
                                                  kMaxBytes + 1, kMaxBytes));
  }
  return FilterParser(filter).Parse();
}

}  // namespace ptq
