// What a rule found, collected so that one sentence stands for all layers that break it.
#ifndef PTQ_FORMATS_HEADERS_LOADER_RULES_FINDINGS_H_
#define PTQ_FORMATS_HEADERS_LOADER_RULES_FINDINGS_H_

#include <string>
#include <vector>

namespace ptq {

// Sentences are "SUBJECTS: TEXT". Findings of one text are one sentence, with their subjects listed
// in the order in which they came; an empty subject stands for the whole model.
class Findings {
 public:
  // The loader refuses the files, or loads something else than what was written.
  void Refuse(const std::string& subject, const std::string& text);
  // It loads them, and the user should know this.
  void Remark(const std::string& subject, const std::string& text);
  // These rules are not known here.
  void NotChecked(const std::string& text);

  bool refused() const { return refused_; }
  bool not_checked() const { return not_checked_; }
  std::vector<std::string> Problems() const { return Sentences(/*refusing=*/true); }
  std::vector<std::string> Remarks() const { return Sentences(/*refusing=*/false); }

 private:
  struct Finding {
    bool refusing;
    std::string text;
    std::vector<std::string> subjects;
  };
  void Add(bool refusing, const std::string& subject, const std::string& text);
  std::vector<std::string> Sentences(bool refusing) const;

  std::vector<Finding> findings_;
  bool refused_ = false;
  bool not_checked_ = false;
};

}  // namespace ptq

#endif  // PTQ_FORMATS_HEADERS_LOADER_RULES_FINDINGS_H_
