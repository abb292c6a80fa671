#include "formats/gguf_tokenizer.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/json.h"
#include "common/logging.h"
#include "common/status_macros.h"
#include "common/status_util.h"
#include "formats/headers/model_files.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

// llama.cpp's kinds of tokens.
enum TokenType : int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

constexpr char kTokenizerFile[] = "tokenizer.json";
constexpr char kSpaceSymbol[] = "\xE2\x96\x81";  // U+2581, SentencePiece's space

absl::Status Unsupported(const std::string& what) {
  return absl::FailedPreconditionError(
      absl::StrCat(kTokenizerFile, ": ", what,
                   ", which llama.cpp has no equal of; --format affine, gptq or "
                   "compressed-tensors keep tokenizer.json as it is"));
}

absl::Status Damaged(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(kTokenizerFile, ": ", what));
}

// The member of an object; a null where it is missing.
const Json& Member(const Json& object, const char* name) {
  static const Json* const null = new Json(nullptr);
  if (!object.is_object()) return *null;
  const auto member = object.find(name);
  return member == object.end() ? *null : *member;
}

std::string Text(const Json& value) {
  return value.is_string() ? value.get<std::string>() : std::string();
}

bool IsTrue(const Json& value) { return value.is_boolean() && value.get<bool>(); }

// An object of the folder's JSON file; null where there is none.
absl::StatusOr<Json> ReadJson(const std::string& folder, const std::string& name) {
  const std::string path = JoinPath(folder, name);
  if (!PathExists(path)) return Json(nullptr);
  PTQ_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  auto json = ParseJson(text);
  if (!json.ok()) return Annotate(json.status(), name);
  return json;
}

// --- The pre-tokenizer -------------------------------------------------------------------------

// A regex of a tokenizer.json and the names by which llama.cpp has it. The pieces are the same; the
// second name also takes a piece that is a token as it is ("ignore_merges").
struct KnownSplit {
  const char* regex;
  const char* name;
  const char* ignoring_merges;  // nullptr: llama.cpp has no such name
};

constexpr KnownSplit kKnownSplits[] = {
    // Llama 3; DBRX, OLMo 2 and Phi-4 with merges
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     "dbrx", "llama-bpe"},
    // Qwen 2 to 3
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     "qwen2", nullptr},
    // Qwen 3.5
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     "qwen35", nullptr},
    // Mistral's Tekken
    {R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     nullptr, "tekken"},
    // GPT-4o, Phi-4-mini
    {R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     "gpt-4o", nullptr},
};

// The steps of a pre-tokenizer: those of a Sequence, or the one that it is.
std::vector<Json> StepsOf(const Json& part, const char* list) {
  if (part.is_null()) return {};
  if (Text(Member(part, "type")) != "Sequence") return {part};
  const Json& steps = Member(part, list);
  return steps.is_array() ? std::vector<Json>(steps.begin(), steps.end()) : std::vector<Json>{};
}

// llama.cpp's name of a byte-level BPE's pre-tokenizer.
absl::StatusOr<std::string> PreTokenizerName(const Json& tokenizer) {
  const bool ignore_merges = IsTrue(Member(Member(tokenizer, "model"), "ignore_merges"));
  const std::vector<Json> steps = StepsOf(Member(tokenizer, "pre_tokenizer"), "pretokenizers");
  if (steps.empty() || Text(Member(steps.back(), "type")) != "ByteLevel") {
    return Unsupported("a pre_tokenizer that does not end with ByteLevel");
  }
  const Json& bytes = steps.back();
  if (IsTrue(Member(bytes, "add_prefix_space"))) {
    return Unsupported("a ByteLevel pre_tokenizer with add_prefix_space");
  }
  const Json& use_regex = Member(bytes, "use_regex");
  const bool gpt2_regex = use_regex.is_null() || IsTrue(use_regex);
  if (steps.size() == 1 && gpt2_regex && !ignore_merges) return "gpt-2";
  if (steps.size() != 2) return Unsupported("a pre_tokenizer of several splits");
  const Json& split = steps.front();
  const std::string type = Text(Member(split, "type"));
  if (type == "Digits" && IsTrue(Member(split, "individual_digits")) && gpt2_regex &&
      !ignore_merges) {
    return "starcoder";
  }
  if (type != "Split" || gpt2_regex) {
    return Unsupported(absl::StrCat("the pre_tokenizer ", Quote(type)));
  }
  const std::string regex = Text(Member(Member(split, "pattern"), "Regex"));
  for (const KnownSplit& known : kKnownSplits) {
    if (regex != known.regex) continue;
    const char* name = ignore_merges ? known.ignoring_merges : known.name;
    if (name != nullptr) return name;
  }
  return Unsupported(absl::StrCat("the pre_tokenizer's regex ", Quote(regex),
                                  ignore_merges ? " with ignore_merges" : ""));
}

// Byte-level BPE: text goes in as it is. NFC, which Qwen asks for, is taken for granted.
absl::Status CheckByteLevelNormalizer(const Json& tokenizer) {
  for (const Json& step : StepsOf(Member(tokenizer, "normalizer"), "normalizers")) {
    const std::string type = Text(Member(step, "type"));
    if (type != "NFC") return Unsupported(absl::StrCat("the normalizer ", Quote(type)));
  }
  return absl::OkStatus();
}

// Whether SentencePiece's text begins with a space of its own. Everything else of its normalizer is
// what llama.cpp does anyway: spaces become U+2581.
absl::StatusOr<bool> AddsSpacePrefix(const Json& tokenizer) {
  bool prefix = false;
  bool spaces = false;
  for (const Json& step : StepsOf(Member(tokenizer, "normalizer"), "normalizers")) {
    const std::string type = Text(Member(step, "type"));
    if (type == "Prepend" && Text(Member(step, "prepend")) == kSpaceSymbol) {
      prefix = true;
    } else if (type == "Replace" && Text(Member(Member(step, "pattern"), "String")) == " " &&
               Text(Member(step, "content")) == kSpaceSymbol) {
      spaces = true;
    } else {
      return Unsupported(absl::StrCat("the normalizer ", Quote(type)));
    }
  }
  for (const Json& step : StepsOf(Member(tokenizer, "pre_tokenizer"), "pretokenizers")) {
    const std::string type = Text(Member(step, "type"));
    // Where the normalizer has left no space, splitting at spaces does nothing.
    if (type == "Split" && Text(Member(Member(step, "pattern"), "String")) == " " && spaces) {
      continue;
    }
    const Json& split = Member(step, "split");
    if (type != "Metaspace" || !split.is_boolean() || split.get<bool>()) {
      return Unsupported(absl::StrCat("the pre_tokenizer ", Quote(type)));
    }
    spaces = true;
    prefix = Text(Member(step, "prepend_scheme")) != "never";
  }
  if (!spaces) return Unsupported("a BPE with byte_fallback that leaves spaces as they are");
  return prefix;
}

// --- Tokens ------------------------------------------------------------------------------------

struct Tokens {
  std::vector<std::string> texts;
  std::vector<int32_t> types;
  std::map<std::string, int64_t> ids;  // of the texts in use

  void Set(int64_t id, const std::string& text, int32_t type) {
    texts[static_cast<size_t>(id)] = text;
    types[static_cast<size_t>(id)] = type;
    ids[text] = id;
  }
};

bool IsByteToken(const std::string& text) {
  return text.size() == 6 && text.rfind("<0x", 0) == 0 && text.back() == '>' &&
         text.find_first_not_of("0123456789ABCDEF", 3) == 5;
}

absl::StatusOr<Tokens> ReadTokens(const Json& tokenizer, bool byte_fallback, int64_t vocab_size) {
  Tokens tokens;
  tokens.texts.resize(static_cast<size_t>(vocab_size));
  tokens.types.resize(tokens.texts.size(), kUnused);
  for (size_t i = 0; i < tokens.texts.size(); ++i) tokens.texts[i] = absl::StrCat("[PAD", i, "]");
  const Json& model = Member(tokenizer, "model");
  const Json& vocabulary = Member(model, "vocab");
  const std::string unknown = Text(Member(model, "unk_token"));
  if (!vocabulary.is_object()) return Damaged("\"model\" has no \"vocab\" of tokens and ids");
  for (const auto& [text, id] : vocabulary.items()) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= vocab_size) {
      return Damaged(absl::StrCat("token ", Quote(text), " has no id below the model's vocab_size ",
                                  vocab_size));
    }
    int32_t type = kNormal;
    if (byte_fallback && IsByteToken(text)) type = kByte;
    if (!unknown.empty() && text == unknown) type = kUnknown;
    tokens.Set(id.get<int64_t>(), text, type);
  }
  const Json& added = Member(tokenizer, "added_tokens");
  for (const Json& token : added.is_array() ? added : Json::array()) {
    const std::string text = Text(Member(token, "content"));
    const Json& id = Member(token, "id");
    if (text.empty() || !id.is_number_integer() || id.get<int64_t>() < 0) {
      return Damaged("an added token without content or id");
    }
    if (id.get<int64_t>() >= vocab_size) continue;
    if (text == unknown) continue;
    tokens.Set(id.get<int64_t>(), text, IsTrue(Member(token, "special")) ? kControl : kUserDefined);
  }
  std::set<std::string_view> seen;
  for (const std::string& text : tokens.texts) {
    if (!seen.insert(text).second) return Damaged(absl::StrCat("two tokens ", Quote(text)));
  }
  return tokens;
}

// "a b" for each merge, which tokenizer.json has as that or as a pair.
absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ReadMerges(const Json& model) {
  std::vector<std::pair<std::string, std::string>> merges;
  const Json& list = Member(model, "merges");
  if (!list.is_array()) return Damaged("\"model\" has no \"merges\"");
  for (const Json& merge : list) {
    if (merge.is_array() && merge.size() == 2) {
      merges.emplace_back(Text(merge[0]), Text(merge[1]));
      continue;
    }
    const std::string text = Text(merge);
    const size_t space = text.find(' ', 1);
    if (space == std::string::npos) return Damaged("a merge that is no pair");
    merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return merges;
}

// llama.cpp joins the neighbours whose common token has the best score: the order of the merges. A
// token is made by several merges, which lie beside each other.
std::vector<float> Scores(const Tokens& tokens,
                          const std::vector<std::pair<std::string, std::string>>& merges) {
  std::vector<float> scores(tokens.texts.size(), 0.0f);
  std::vector<bool> has_score(scores.size(), false);
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto token = tokens.ids.find(merges[rank].first + merges[rank].second);
    if (token == tokens.ids.end() || has_score[static_cast<size_t>(token->second)]) continue;
    has_score[static_cast<size_t>(token->second)] = true;
    scores[static_cast<size_t>(token->second)] = -static_cast<float>(rank + 1);
  }
  return scores;
}

// --- Special tokens ----------------------------------------------------------------------------

// A token of tokenizer_config.json: a string, or an object with "content".
std::string TokenText(const Json& value) {
  return value.is_object() ? Text(Member(value, "content")) : Text(value);
}

std::optional<int64_t> SpecialId(const Tokens& tokens, const Json& tokenizer_config,
                                 const Json& config, const std::string& name) {
  const std::string text = TokenText(Member(tokenizer_config, (name + "_token").c_str()));
  if (const auto id = tokens.ids.find(text); !text.empty() && id != tokens.ids.end()) {
    return id->second;
  }
  Json id = Member(config, (name + "_token_id").c_str());
  if (id.is_array() && !id.empty()) id = Json(id[0]);
  if (!id.is_number_integer()) return std::nullopt;
  const auto value = id.get<int64_t>();
  const bool in_range = value >= 0 && value < static_cast<int64_t>(tokens.texts.size());
  return in_range ? std::optional<int64_t>(value) : std::nullopt;
}

// Whether encoding puts `token` at an end of a text: "add_bos_token" where tokenizer_config.json
// says it, otherwise what tokenizer.json's template does.
bool AddsToken(const Json& tokenizer, const Json& tokenizer_config, const char* key,
               const std::string& token, bool at_beginning) {
  const Json& flag = Member(tokenizer_config, key);
  if (flag.is_boolean()) return flag.get<bool>();
  for (const Json& step : StepsOf(Member(tokenizer, "post_processor"), "processors")) {
    const Json& single = Member(step, "single");
    if (Text(Member(step, "type")) != "TemplateProcessing" || !single.is_array() ||
        single.empty()) {
      continue;
    }
    const Json& piece = at_beginning ? single.front() : single.back();
    return Text(Member(Member(piece, "SpecialToken"), "id")) == token;
  }
  return false;
}

absl::StatusOr<std::string> ChatTemplate(const std::string& folder, const Json& tokenizer_config) {
  const std::string path = JoinPath(folder, "chat_template.jinja");
  if (PathExists(path)) return ReadFile(path, kMaxConfigBytes);
  const Json& value = Member(tokenizer_config, "chat_template");
  if (!value.is_array()) return Text(value);
  for (const Json& entry : value) {
    if (Text(Member(entry, "name")) == "default") return Text(Member(entry, "template"));
  }
  return "";
}

}  // namespace

std::optional<ByteLevelSplit> ByteLevelSplitOf(const std::string& name) {
  const auto bytes = [](bool use_regex) {
    return Json{{"type", "ByteLevel"},
                {"add_prefix_space", false},
                {"trim_offsets", true},
                {"use_regex", use_regex}};
  };
  const auto sequence = [](Json first, Json second) {
    return Json{{"type", "Sequence"}, {"pretokenizers", {std::move(first), std::move(second)}}};
  };
  if (name == "gpt-2") return ByteLevelSplit{bytes(true)};
  if (name == "starcoder") {
    return ByteLevelSplit{
        sequence(Json{{"type", "Digits"}, {"individual_digits", true}}, bytes(true))};
  }
  for (const KnownSplit& known : kKnownSplits) {
    const bool ignoring = known.ignoring_merges != nullptr && name == known.ignoring_merges;
    if (!ignoring && (known.name == nullptr || name != known.name)) continue;
    Json split = {{"type", "Split"},
                  {"pattern", {{"Regex", known.regex}}},
                  {"behavior", "Isolated"},
                  {"invert", false}};
    return ByteLevelSplit{sequence(std::move(split), bytes(false)), ignoring};
  }
  return std::nullopt;
}

absl::StatusOr<GgufMetadata> GgufTokenizerMetadata(const std::string& folder, int64_t vocab_size) {
  if (!PathExists(JoinPath(folder, kTokenizerFile))) {
    PTQ_LOG(Warning) << "the model has no tokenizer.json: its GGUF file takes token ids only";
    return GgufMetadata{{"tokenizer.ggml.model", std::string("no_vocab")}};
  }
  PTQ_ASSIGN_OR_RETURN(const Json tokenizer, ReadJson(folder, kTokenizerFile));
  PTQ_ASSIGN_OR_RETURN(const Json tokenizer_config, ReadJson(folder, "tokenizer_config.json"));
  PTQ_ASSIGN_OR_RETURN(const Json config, ReadJson(folder, "config.json"));
  const Json& model = Member(tokenizer, "model");
  if (Text(Member(model, "type")) != "BPE") {
    return Unsupported(absl::StrCat("a tokenizer of type ", Quote(Text(Member(model, "type")))));
  }
  const bool byte_fallback = IsTrue(Member(model, "byte_fallback"));
  PTQ_ASSIGN_OR_RETURN(const Tokens tokens, ReadTokens(tokenizer, byte_fallback, vocab_size));
  PTQ_ASSIGN_OR_RETURN(const auto merges, ReadMerges(model));

  GgufMetadata metadata;
  if (byte_fallback) {
    PTQ_ASSIGN_OR_RETURN(const bool space_prefix, AddsSpacePrefix(tokenizer));
    metadata.emplace_back("tokenizer.ggml.model", std::string("llama"));
    metadata.emplace_back("tokenizer.ggml.pre", std::string("default"));
    metadata.emplace_back("tokenizer.ggml.tokens", tokens.texts);
    metadata.emplace_back("tokenizer.ggml.scores", Scores(tokens, merges));
    metadata.emplace_back("tokenizer.ggml.token_type", tokens.types);
    metadata.emplace_back("tokenizer.ggml.add_space_prefix", space_prefix);
  } else {
    PTQ_RETURN_IF_ERROR(CheckByteLevelNormalizer(tokenizer));
    PTQ_ASSIGN_OR_RETURN(const std::string name, PreTokenizerName(tokenizer));
    std::vector<std::string> joined;
    for (const auto& [first, second] : merges) joined.push_back(first + " " + second);
    metadata.emplace_back("tokenizer.ggml.model", std::string("gpt2"));
    metadata.emplace_back("tokenizer.ggml.pre", name);
    metadata.emplace_back("tokenizer.ggml.tokens", tokens.texts);
    metadata.emplace_back("tokenizer.ggml.token_type", tokens.types);
    metadata.emplace_back("tokenizer.ggml.merges", std::move(joined));
  }

  std::string beginning;
  std::string end;
  for (const auto& [name, key] : {std::pair("bos", "bos"), std::pair("eos", "eos"),
                                  std::pair("unk", "unknown"), std::pair("pad", "padding")}) {
    const std::optional<int64_t> id = SpecialId(tokens, tokenizer_config, config, name);
    if (!id.has_value()) continue;
    metadata.emplace_back(absl::StrCat("tokenizer.ggml.", key, "_token_id"),
                          static_cast<uint32_t>(*id));
    const std::string& text = tokens.texts[static_cast<size_t>(*id)];
    if (std::string_view(name) == "bos") beginning = text;
    if (std::string_view(name) == "eos") end = text;
  }
  metadata.emplace_back("tokenizer.ggml.add_bos_token",
                        !beginning.empty() && AddsToken(tokenizer, tokenizer_config,
                                                        "add_bos_token", beginning, true));
  metadata.emplace_back(
      "tokenizer.ggml.add_eos_token",
      !end.empty() && AddsToken(tokenizer, tokenizer_config, "add_eos_token", end, false));
  PTQ_ASSIGN_OR_RETURN(std::string chat_template, ChatTemplate(folder, tokenizer_config));
  if (!chat_template.empty()) {
    metadata.emplace_back("tokenizer.chat_template", std::move(chat_template));
  }
  return metadata;
}

}  // namespace ptq
