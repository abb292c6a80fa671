// What HTML pages are built of: text that stays text, tables, and figures as people read them.
#ifndef PTQ_WORKER_HTML_H_
#define PTQ_WORKER_HTML_H_

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "common/json.h"

namespace ptq::html {

std::string Escape(const std::string& text);

// The value at a chain of keys, or nullptr where one is missing or null.
const Json* At(const Json& json, std::initializer_list<const char*> path);
// None where it is missing or no number.
std::optional<double> Number(const Json& json, std::initializer_list<const char*> path);
// "" where it is missing; of another type its JSON.
std::string Text(const Json& json, std::initializer_list<const char*> path);
// Empty where it is missing or no array.
const Json& Array(const Json& json, const char* key);

// "–" for none. Four significant digits, without an exponent where that stays short.
std::string Figure(std::optional<double> value);
std::string Bytes(std::optional<double> bytes);
std::string Count(std::optional<double> count);
std::string Seconds(std::optional<double> seconds);
std::string Percent(std::optional<double> value);  // of a fraction

// Arguments are HTML.
std::string Card(const std::string& value, const std::string& label);
std::string Row(const std::vector<std::string>& cells, const char* tag = "td");
std::string Section(const std::string& title, const std::string& note, const std::string& body);
std::string Panel(const std::string& body);

}  // namespace ptq::html

#endif  // PTQ_WORKER_HTML_H_
