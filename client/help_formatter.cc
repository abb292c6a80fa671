#include "client/help_formatter.h"

#include <CLI/Formatter.hpp>
#include <algorithm>

#include "absl/strings/ascii.h"
#include "client/text_format.h"

namespace ptq {
namespace {

constexpr int kColumns = 80;
constexpr int kIndent = 4;
constexpr int kDescriptionIndent = 8;

std::string Section(const std::string& title) { return "\n" + title + "\n"; }

std::string OptionEntry(const CLI::Option& option) {
  std::string names =
      option.get_positional() ? option.get_name(true) : option.get_name(false, true);
  for (size_t comma = names.find(','); comma != std::string::npos;
       comma = names.find(',', comma + 2)) {
    names.insert(comma + 1, " ");
  }
  const bool takes_value = option.get_type_size() != 0 && !option.get_positional();
  if (takes_value) names += " " + option.get_type_name();
  std::string description = option.get_description();
  if (!option.get_default_str().empty()) {
    description += " Default: " + option.get_default_str() + ".";
  }
  return WrapText(names, 1000, kIndent) + WrapText(description, kColumns, kDescriptionIndent);
}

std::string Options(const CLI::App& app, const std::string& title_for_default) {
  std::string text;
  std::string positionals;
  std::vector<std::string> groups;
  const std::vector<const CLI::Option*> options = app.get_options();
  for (const CLI::Option* option : options) {
    if (option->get_positional()) {
      positionals += OptionEntry(*option);
    } else if (std::find(groups.begin(), groups.end(), option->get_group()) == groups.end()) {
      groups.push_back(option->get_group());
    }
  }
  if (!positionals.empty()) text += Section("ARGUMENTS") + positionals;
  // The group that holds --help comes last.
  std::stable_partition(groups.begin(), groups.end(),
                        [](const std::string& group) { return group != "Options"; });
  for (const std::string& group : groups) {
    if (group.empty()) continue;
    text += Section(group == "Options" ? title_for_default : absl::AsciiStrToUpper(group));
    for (const CLI::Option* option : options) {
      if (!option->get_positional() && option->get_group() == group) text += OptionEntry(*option);
    }
  }
  return text;
}

std::string ExitStatusSection(bool ends_with_job) {
  std::string text = Section("EXIT STATUS") + "    0    done\n";
  if (ends_with_job) text += "    1    the job failed or was cancelled\n";
  text +=
      "    2    wrong usage, or the server refused the input\n"
      "    3    the server cannot be reached\n"
      "    4    anything else: the local disk, a digest that does not fit, an internal\n"
      "         error or a quota of the server\n"
      "    130  Ctrl-C\n";
  return text;
}

}  // namespace

std::string HelpFormatter::make_help(const CLI::App* app, std::string, CLI::AppFormatMode) const {
  const CLI::App* parent = app->get_parent();
  const std::string full_name = parent == nullptr ? "ptq" : "ptq " + app->get_name();
  std::string text = "NAME\n";
  text += WrapText(full_name + " - " + app->get_description(), kColumns, kIndent);
  text += Section("SYNOPSIS");
  for (const std::string& line : text_.synopsis) text += "    " + line + "\n";
  text += Section("DESCRIPTION") + WrapText(text_.description, kColumns, kIndent);
  const std::vector<const CLI::App*> commands = app->get_subcommands({});
  if (!commands.empty()) {
    text += Section("COMMANDS");
    for (const CLI::App* command : commands) {
      std::string entry = command->get_name();
      entry.resize(std::max<size_t>(entry.size() + 2, 14), ' ');
      text += "    " + entry + command->get_description() + "\n";
    }
  }
  text += Options(*app, "OPTIONS");
  if (parent != nullptr) {
    for (const CLI::Option* option : parent->get_options()) {
      if (option->check_lname("server")) text += OptionEntry(*option);
    }
  }
  if (!text_.examples.empty()) {
    text += Section("EXAMPLES");
    for (size_t i = 0; i < text_.examples.size(); ++i) {
      if (i > 0) text += "\n";
      text += WrapText(text_.examples[i].first, kColumns, kIndent);
      text += WrapText("    " + text_.examples[i].second, 1000, kIndent);
    }
  }
  return text + ExitStatusSection(text_.ends_with_job);
}

}  // namespace ptq
