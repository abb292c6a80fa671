// Where a command writes, and what the terminal there can show.
#ifndef PTQ_CLIENT_CONSOLE_H_
#define PTQ_CLIENT_CONSOLE_H_

#include <ostream>
#include <string>
#include <vector>

namespace ptq {

struct TerminalTraits {
  bool interactive = false;  // lines can be redrawn in place
  bool color = false;
  bool unicode = false;
  int fd = -1;  // asked for its width at each redraw; -1: always 80 columns
  int Width() const;
};

// What the environment says; read in main.cc alone.
struct TerminalEnvironment {
  std::string term;       // TERM
  bool no_color = false;  // NO_COLOR is set and not empty
  bool utf8 = false;      // the locale's encoding
};

TerminalTraits DetectTerminal(int fd, const TerminalEnvironment& environment);

struct Console {
  std::ostream& out;
  std::ostream& err;
  TerminalTraits out_terminal;
  TerminalTraits err_terminal;
};

enum class TextColor { kGreen, kRed, kYellow, kBold, kDim };

// `text` in that colour if the terminal has colours.
std::string Colored(const TerminalTraits& terminal, TextColor color, const std::string& text);

// Lines at the bottom of the output that are redrawn in place, each time by one write, so that
// nothing flickers. Thread-compatible; `out` must outlive it.
class LiveRegion {
 public:
  explicit LiveRegion(std::ostream& out) : out_(out) {}
  ~LiveRegion() { Clear(); }
  LiveRegion(const LiveRegion&) = delete;
  LiveRegion& operator=(const LiveRegion&) = delete;

  // Replaces the region. No line may be wider than the terminal.
  void Draw(const std::vector<std::string>& lines);
  // Lines that stay, above the region, which is drawn again below them.
  void PrintAbove(const std::string& text);
  void Clear();

 private:
  // Moves to the region's first column and line.
  std::string Rewind() const;

  std::ostream& out_;
  std::vector<std::string> lines_;
};

}  // namespace ptq

#endif  // PTQ_CLIENT_CONSOLE_H_
