// Log lines on standard error: time, severity, message. The back end is spdlog, included in
// logging.cc alone, because libtorch bundles another fmt.
#ifndef PTQ_COMMON_LOGGING_H_
#define PTQ_COMMON_LOGGING_H_

#include <sstream>
#include <string>

namespace ptq {

enum class LogSeverity { kDebug, kInfo, kWarning, kError };

// Lines below `severity` are dropped; the default is kInfo. Thread-safe.
void SetMinimumLogSeverity(LogSeverity severity);
void LogLine(LogSeverity severity, const std::string& line);

// Collects one line from stream insertions; see PTQ_LOG.
class LogStream {
 public:
  explicit LogStream(LogSeverity severity) : severity_(severity) {}
  ~LogStream() { LogLine(severity_, stream_.str()); }
  std::ostream& stream() { return stream_; }

 private:
  LogSeverity severity_;
  std::ostringstream stream_;
};

}  // namespace ptq

// PTQ_LOG(Info) << "ready";  torch owns the plain names LOG and CHECK.
#define PTQ_LOG(severity) ::ptq::LogStream(::ptq::LogSeverity::k##severity).stream()

#endif  // PTQ_COMMON_LOGGING_H_
