// SPDX-License-Identifier: Apache-2.0
// Chat templates against what transformers makes of them (tests/golden/make_chat.py), and against hostile ones.
#include <graft/io/json.hpp>
#include <graft/text/chat_template.hpp>
#include <graft/text/model_tokenizer.hpp>

#include <tests/catch.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <string>
#include <vector>

using graft::ChatOptions;
using graft::ChatTemplate;
using nlohmann::ordered_json;

namespace {

ordered_json golden() { return graft::read_json<ordered_json>(GRAFT_TEST_DATA "/text_chat.json"); }

/// The text, or null where the template or its input is refused.
ordered_json render(std::string const& source, ordered_json const& messages, ChatOptions const& options) {
  try {
    return ChatTemplate(source).render(messages, options);
  } catch (graft::Error const&) {
    return nullptr;
  }
}

ChatOptions options() {
  ChatOptions out;
  out.add_generation_prompt = false;
  out.bos_token = "<s>";
  out.eos_token = "</s>";
  return out;
}

std::string refusal(std::string const& source, ordered_json const& messages = ordered_json::array()) {
  try {
    ChatTemplate(source).render(messages);
  } catch (graft::FormatError const& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("the families' templates render conversations as transformers does") {
  ordered_json const data = golden();
  int rendered = 0, refused = 0;
  for (auto const& one : data["cases"]) {
    ChatOptions given = options();
    given.add_generation_prompt = one["add_generation_prompt"];
    given.variables = one["variables"];
    INFO(one["family"] << " " << one["messages"].dump());
    CHECK(render(data["templates"][one["family"].get<std::string>()], one["messages"], given) == one["text"]);
    ++(one["text"].is_null() ? refused : rendered);
  }
  CHECK(rendered > 100);
  CHECK(refused > 10);
}

TEST_CASE("every construct does what Jinja does") {
  ordered_json const data = golden();
  REQUIRE(data["snippets"].size() > 100);
  for (auto const& one : data["snippets"]) {
    INFO(one["template"]);
    CHECK(render(one["template"], data["messages"], options()) == one["text"]);
  }
}

TEST_CASE("what is not supported is refused by name, with the line, before anything is rendered") {
  CHECK(refusal("a\n\n{% include 'x' %}") == "chat template, line 3: the statement 'include' is not supported");
  CHECK(refusal("{{ x | groupby('a') }}") == "chat template, line 1: the filter 'groupby' is not supported");
  CHECK(refusal("{{ x is sameas y }}") == "chat template, line 1: the test 'sameas' is not supported");
  CHECK(refusal("{{ 'a'.casefold() }}") == "chat template, line 1: the method 'casefold' of a string is not supported");
  CHECK(refusal("{{ 1 < 2 < 3 }}") == "chat template, line 1: chained comparisons are not supported");
  CHECK(refusal("\xFF") == "chat template: is not UTF-8");
  CHECK_THROWS_AS(ChatTemplate("{% if false %}{% import 'x' %}{% endif %}"), graft::FormatError);
}

TEST_CASE("a template refuses a conversation in its own words") {
  CHECK_THROWS_AS(ChatTemplate("{{ raise_exception('no') }}").render({}), graft::ContractError);
  CHECK_THROWS_WITH(ChatTemplate("{{ raise_exception('roles must alternate') }}").render({}),
                    "chat template: roles must alternate");
}

TEST_CASE("the date is the caller's") {
  ChatOptions given;
  std::tm day{};
  day.tm_year = 124, day.tm_mon = 6, day.tm_mday = 26, day.tm_hour = 12, day.tm_isdst = -1;
  given.now = std::mktime(&day);
  CHECK(ChatTemplate("{{ strftime_now('%d %b %Y') }}").render({}, given) == "26 Jul 2024");
}

TEST_CASE("a hostile template ends in a sentence") {
  auto const repeat = [](std::string const& part, int count) {
    std::string out;
    while (count-- > 0) out += part;
    return out;
  };
  std::vector<std::string> const sources = {
      "{{ " + repeat("(", 100000),
      "{{ " + repeat("(", 5000) + "1" + repeat(")", 5000) + " }}",
      "{{ " + repeat("-", 100000) + "1 }}",
      "{{ " + repeat("not ", 100000) + "1 }}",
      "{{ " + repeat("[", 100000) + repeat("]", 100000) + " }}",
      "{{ 1" + repeat(" + 1", 100000) + " }}",
      "{{ x" + repeat(".y", 100000) + " }}",
      "{{ x" + repeat("|trim", 100000) + " }}",
      repeat("{% if true %}", 100000),
      repeat("{% if true %}", 5000) + repeat("{% endif %}", 5000),
      "{% if 0 %}" + repeat("{% elif 0 %}", 5000) + "{% endif %}",
      "{{ range(1000000000000) }}",
      "{{ 'a' * 1000000000000 }}",
      "{{ 9223372036854775807 + 1 }}",
      "{{ (-9223372036854775807 - 1) // -1 }}",
      "{{ 99999999999999999999 }}",
      "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
      "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
      "{% set ns = namespace(s='x' * 9999999) %}{{ ns.s | replace('x', ns.s) }}",
      "{% set ns = namespace(s='x' * 9999) %}{{ range(99999) | map('replace', '1', ns.s) | list }}",
      "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
      "{% set ns = namespace(l=[]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
      "{% set ns = namespace(l=[]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l|tojson "
      "}}",
      "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
      "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns }}",
      "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
      "{% macro m(n) %}{% for i in [1] %}{{ m(n) }}{% endfor %}{% endmacro %}{% for i in [1] %}{{ m(1) }}{% endfor %}",
      "{{ '\\ud800' }}",
      "{{ '\\x",
      "{{ 'a\\",
  };
  for (auto const& source : sources) {
    INFO(source.substr(0, 100));
    CHECK_FALSE(refusal(source).empty());
  }
}

TEST_CASE("SmolLM2's own template, from its GGUF file, becomes tokens") {
  std::string const path = GRAFT_SOURCE_DIR "/.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) GRAFT_SKIP("the model is not there: " + path);
  graft::Tokenizer const tokenizer{graft::read_tokenizer(path)};
  std::string const text = graft::apply_chat_template(
      tokenizer, {{{"role", "system"}, {"content", "S"}}, {{"role", "user"}, {"content", "Hi"}}});
  CHECK(text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  auto const ids = tokenizer.encode(text, false);
  CHECK(ids.front() == 1);
  CHECK(std::count(ids.begin(), ids.end(), 1) == 3);
  CHECK(std::count(ids.begin(), ids.end(), 2) == 2);
  CHECK(tokenizer.decode(ids) == text);
}
