#include "client/console.h"

#include <sys/ioctl.h>
#include <unistd.h>

namespace ptq {
namespace {

constexpr int kDefaultColumns = 80;
constexpr char kClearToLineEnd[] = "\x1b[K";
constexpr char kClearBelow[] = "\x1b[J";

const char* ColorCode(TextColor color) {
  switch (color) {
    case TextColor::kGreen:
      return "\x1b[32m";
    case TextColor::kRed:
      return "\x1b[31m";
    case TextColor::kYellow:
      return "\x1b[33m";
    case TextColor::kBold:
      return "\x1b[1m";
    case TextColor::kDim:
      return "\x1b[2m";
  }
  return "";
}

}  // namespace

int TerminalTraits::Width() const {
  struct winsize size;
  if (fd >= 0 && ::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return kDefaultColumns;
}

TerminalTraits DetectTerminal(int fd, const TerminalEnvironment& environment) {
  TerminalTraits traits;
  traits.fd = fd;
  traits.unicode = environment.utf8;
  traits.interactive = ::isatty(fd) == 1 && !environment.term.empty() && environment.term != "dumb";
  traits.color = traits.interactive && !environment.no_color;
  return traits;
}

std::string Colored(const TerminalTraits& terminal, TextColor color, const std::string& text) {
  if (!terminal.color || text.empty()) return text;
  return ColorCode(color) + text + "\x1b[0m";
}

std::string LiveRegion::Rewind() const {
  std::string text = "\r";
  if (lines_.size() > 1) text += "\x1b[" + std::to_string(lines_.size() - 1) + "A";
  return text;
}

void LiveRegion::Draw(const std::vector<std::string>& lines) {
  std::string text = lines_.empty() ? "" : Rewind();
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) text += "\n";
    text += lines[i] + kClearToLineEnd;
  }
  if (lines_.size() > lines.size()) text += kClearBelow;
  lines_ = lines;
  out_ << text << std::flush;
}

void LiveRegion::PrintAbove(const std::string& text) {
  const std::vector<std::string> lines = lines_;
  Clear();
  out_ << text;
  if (lines.empty()) {
    out_ << std::flush;
  } else {
    Draw(lines);
  }
}

void LiveRegion::Clear() {
  if (lines_.empty()) return;
  out_ << Rewind() << kClearBelow << std::flush;
  lines_.clear();
}

}  // namespace ptq
