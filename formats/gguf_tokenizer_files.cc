#include "formats/gguf_tokenizer_files.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "formats/gguf_config.h"
#include "formats/gguf_tokenizer.h"
#include "formats/headers/quote.h"

namespace ptq {
namespace {

// llama.cpp's kinds of tokens.
constexpr int32_t kNormal = 1;
constexpr int32_t kUnknown = 2;
constexpr int32_t kControl = 3;
constexpr int32_t kUserDefined = 4;
constexpr int32_t kUnused = 5;
constexpr int32_t kByte = 6;

constexpr char kPrefix[] = "tokenizer.ggml.";
constexpr char kSpaceSymbol[] = "\xE2\x96\x81";  // U+2581

template <typename T>
const T* Value(const GgufFile& file, const std::string& key) {
  const GgufValue* value = FindGgufValue(file, kPrefix + key);
  return value == nullptr ? nullptr : std::get_if<T>(value);
}

struct Tokens {
  std::vector<std::string> texts;
  std::vector<int32_t> types;
  std::vector<float> scores;  // empty: the file has none
  // "[PAD7]", which fills an id that no token has.
  bool IsFiller(size_t id) const {
    return types[id] == kUnused && texts[id] == absl::StrCat("[PAD", id, "]");
  }
};

absl::StatusOr<Tokens> ReadTokens(const GgufFile& file) {
  Tokens tokens;
  const auto* texts = Value<std::vector<std::string>>(file, "tokens");
  if (texts == nullptr || texts->empty()) {
    return absl::InvalidArgumentError("there is no key tokenizer.ggml.tokens");
  }
  tokens.texts = *texts;
  const auto* types = Value<std::vector<int32_t>>(file, "token_type");
  tokens.types = types == nullptr ? std::vector<int32_t>(texts->size(), kNormal) : *types;
  if (const auto* scores = Value<std::vector<float>>(file, "scores")) tokens.scores = *scores;
  if (tokens.types.size() != texts->size() ||
      (!tokens.scores.empty() && tokens.scores.size() != texts->size())) {
    return absl::InvalidArgumentError(
        "tokenizer.ggml.tokens, token_type and scores are not equally long");
  }
  return tokens;
}

Json Vocabulary(const Tokens& tokens) {
  Json vocabulary = Json::object();
  for (size_t id = 0; id < tokens.texts.size(); ++id) {
    if (!tokens.IsFiller(id)) vocabulary[tokens.texts[id]] = id;
  }
  return vocabulary;
}

Json AddedTokens(const Tokens& tokens) {
  Json added = Json::array();
  for (size_t id = 0; id < tokens.texts.size(); ++id) {
    const int32_t type = tokens.types[id];
    if (type != kControl && type != kUserDefined && type != kUnknown) continue;
    added.push_back({{"id", id},
                     {"content", tokens.texts[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", type != kUserDefined}});
  }
  return added;
}

absl::StatusOr<Json> ByteLevelTokenizer(const GgufFile& file, const Tokens& tokens) {
  const auto* name = Value<std::string>(file, "pre");
  const auto* merges = Value<std::vector<std::string>>(file, "merges");
  const auto split = name == nullptr ? std::nullopt : ByteLevelSplitOf(*name);
  if (!split) {
    return absl::UnimplementedError(absl::StrCat(
        "tokenizer.ggml.pre ", name == nullptr ? "is missing" : Quote(*name) + " is not known"));
  }
  if (merges == nullptr) {
    return absl::InvalidArgumentError("there is no key tokenizer.ggml.merges");
  }
  Json pairs = Json::array();
  for (const std::string& merge : *merges) {
    const size_t space = merge.find(' ', 1);
    if (space == std::string::npos) {
      return absl::InvalidArgumentError("tokenizer.ggml.merges: " + Quote(merge) + " is no pair");
    }
    pairs.push_back({merge.substr(0, space), merge.substr(space + 1)});
  }
  Json json;
  json["normalizer"] = *name == "qwen2" ? Json{{"type", "NFC"}} : Json(nullptr);
  json["pre_tokenizer"] = split->pre_tokenizer;
  json["decoder"] = {{"type", "ByteLevel"},
                     {"add_prefix_space", true},
                     {"trim_offsets", true},
                     {"use_regex", true}};
  json["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr},
                   {"fuse_unk", false},
                   {"byte_fallback", false},
                   {"ignore_merges", split->ignore_merges},
                   {"vocab", Vocabulary(tokens)},
                   {"merges", std::move(pairs)}};
  return json;
}

// llama.cpp joins two neighbours if they make a token, best score first. So all pairs that make one
// are merges, in the order of its score.
Json MergesOf(const Tokens& tokens, const Json& vocabulary) {
  std::vector<size_t> order;
  for (size_t id = 0; id < tokens.texts.size(); ++id) {
    if (tokens.types[id] == kNormal) order.push_back(id);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&tokens](size_t a, size_t b) { return tokens.scores[a] > tokens.scores[b]; });
  Json merges = Json::array();
  for (const size_t id : order) {
    const std::string& text = tokens.texts[id];
    std::vector<std::tuple<int64_t, int64_t, Json>> pairs;
    for (size_t at = 1; at < text.size(); ++at) {
      if ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) continue;  // within a character
      const auto first = vocabulary.find(text.substr(0, at));
      const auto second = vocabulary.find(text.substr(at));
      if (first == vocabulary.end() || second == vocabulary.end()) continue;
      pairs.emplace_back(first->get<int64_t>(), second->get<int64_t>(),
                         Json::array({text.substr(0, at), text.substr(at)}));
    }
    std::sort(pairs.begin(), pairs.end());
    for (auto& [first, second, pair] : pairs) merges.push_back(std::move(pair));
  }
  return merges;
}

absl::StatusOr<Json> SentencePieceTokenizer(const GgufFile& file, const Tokens& tokens) {
  if (tokens.scores.empty()) {
    return absl::InvalidArgumentError("there is no key tokenizer.ggml.scores");
  }
  const bool byte_fallback = std::count(tokens.types.begin(), tokens.types.end(), kByte) > 0;
  const auto unknown = std::find(tokens.types.begin(), tokens.types.end(), kUnknown);
  const auto* space_prefix = Value<bool>(file, "add_space_prefix");
  const bool prefix = space_prefix == nullptr || *space_prefix;
  const Json spaces = {
      {"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpaceSymbol}};
  Json decoders = Json::array();
  decoders.push_back(
      {{"type", "Replace"}, {"pattern", {{"String", kSpaceSymbol}}}, {"content", " "}});
  decoders.push_back({{"type", "ByteFallback"}});
  decoders.push_back({{"type", "Fuse"}});
  if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  Json json;
  json["normalizer"] = spaces;
  if (prefix) {
    json["normalizer"] = {
        {"type", "Sequence"},
        {"normalizers", {{{"type", "Prepend"}, {"prepend", kSpaceSymbol}}, spaces}}};
  }
  json["pre_tokenizer"] = nullptr;
  json["decoder"] = {{"type", "Sequence"}, {"decoders", std::move(decoders)}};
  Json vocabulary = Vocabulary(tokens);
  Json merges = MergesOf(tokens, vocabulary);
  json["model"] = {
      {"type", "BPE"},
      {"dropout", nullptr},
      {"unk_token", unknown == tokens.types.end()
                        ? Json(nullptr)
                        : Json(tokens.texts[static_cast<size_t>(unknown - tokens.types.begin())])},
      {"continuing_subword_prefix", nullptr},
      {"end_of_word_suffix", nullptr},
      {"fuse_unk", true},
      {"byte_fallback", byte_fallback},
      {"ignore_merges", false},
      {"vocab", std::move(vocabulary)},
      {"merges", std::move(merges)}};
  return json;
}

// The token of "<name>_token_id", or nothing.
std::optional<size_t> SpecialId(const GgufFile& file, const Tokens& tokens,
                                const std::string& name) {
  const auto* id = Value<uint32_t>(file, name + "_token_id");
  if (id == nullptr || *id >= tokens.texts.size()) return std::nullopt;
  return *id;
}

// What llama.cpp does where the file does not say it.
bool AddsBeginning(const GgufFile& file, bool sentence_piece) {
  if (const auto* flag = Value<bool>(file, "add_bos_token")) return *flag;
  const auto* pre = Value<std::string>(file, "pre");
  return sentence_piece || (pre != nullptr && (*pre == "llama-bpe" || *pre == "tekken"));
}

// A template that puts the tokens at the ends of a text.
Json PostProcessor(const GgufFile& file, const Tokens& tokens, bool sentence_piece) {
  const auto beginning = SpecialId(file, tokens, "bos");
  const auto end = SpecialId(file, tokens, "eos");
  const auto* add_end = Value<bool>(file, "add_eos_token");
  const bool adds_beginning = beginning && AddsBeginning(file, sentence_piece);
  const bool adds_end = end && add_end != nullptr && *add_end;
  if (!adds_beginning && !adds_end) return nullptr;
  Json special = Json::object();
  const auto token = [&](size_t id, int type) {
    const std::string& text = tokens.texts[id];
    special[text] = {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
    return Json{{"SpecialToken", {{"id", text}, {"type_id", type}}}};
  };
  Json single = Json::array();
  Json pair = Json::array();
  for (const int type : {0, 1}) {
    Json part = Json::array();
    if (adds_beginning) part.push_back(token(*beginning, type));
    part.push_back({{"Sequence", {{"id", type == 0 ? "A" : "B"}, {"type_id", type}}}});
    if (adds_end) part.push_back(token(*end, type));
    if (type == 0) single = part;
    for (Json& piece : part) pair.push_back(std::move(piece));
  }
  return {{"type", "TemplateProcessing"},
          {"single", std::move(single)},
          {"pair", std::move(pair)},
          {"special_tokens", std::move(special)}};
}

}  // namespace

absl::StatusOr<std::map<std::string, Json>> TokenizerFilesOfGguf(const GgufFile& file) {
  std::map<std::string, Json> files;
  const auto* model = Value<std::string>(file, "model");
  if (model == nullptr || *model == "none" || *model == "no_vocab") return files;
  const bool sentence_piece = *model == "llama";
  if (!sentence_piece && *model != "gpt2") {
    return absl::UnimplementedError("tokenizer.ggml.model " + Quote(*model) +
                                    " is neither gpt2 nor llama");
  }
  PTQ_ASSIGN_OR_RETURN(const Tokens tokens, ReadTokens(file));
  PTQ_ASSIGN_OR_RETURN(const Json parts, sentence_piece ? SentencePieceTokenizer(file, tokens)
                                                        : ByteLevelTokenizer(file, tokens));
  Json tokenizer = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
  tokenizer["added_tokens"] = AddedTokens(tokens);
  tokenizer["normalizer"] = parts["normalizer"];
  tokenizer["pre_tokenizer"] = parts["pre_tokenizer"];
  tokenizer["post_processor"] = PostProcessor(file, tokens, sentence_piece);
  tokenizer["decoder"] = parts["decoder"];
  tokenizer["model"] = parts["model"];
  files["tokenizer.json"] = std::move(tokenizer);

  Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"clean_up_tokenization_spaces", false}};
  for (const auto& [name, key] : {std::pair("bos", "bos"), std::pair("eos", "eos"),
                                  std::pair("unk", "unknown"), std::pair("pad", "padding")}) {
    if (const auto id = SpecialId(file, tokens, key)) {
      config[absl::StrCat(name, "_token")] = tokens.texts[*id];
    }
  }
  if (const std::string text = GgufText(file, "tokenizer.chat_template"); !text.empty()) {
    config["chat_template"] = text;
  }
  files["tokenizer_config.json"] = std::move(config);
  return files;
}

}  // namespace ptq
