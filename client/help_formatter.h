// --help in the form of a manual page.
#ifndef PTQ_CLIENT_HELP_FORMATTER_H_
#define PTQ_CLIENT_HELP_FORMATTER_H_

#include <CLI/App.hpp>
#include <string>
#include <utility>
#include <vector>

namespace ptq {

// What the flags' own descriptions do not say.
struct HelpText {
  std::vector<std::string> synopsis;                          // one line each
  std::string description;                                    // paragraphs
  std::vector<std::pair<std::string, std::string>> examples;  // what for, command line
  bool ends_with_job = false;                                 // exit status 1 is possible
};

// Sections NAME, SYNOPSIS, DESCRIPTION, arguments and options by group, EXAMPLES, EXIT STATUS, at
// 80 columns.
class HelpFormatter : public CLI::Formatter {
 public:
  explicit HelpFormatter(HelpText text) : text_(std::move(text)) {}
  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override;

 private:
  HelpText text_;
};

}  // namespace ptq

#endif  // PTQ_CLIENT_HELP_FORMATTER_H_
