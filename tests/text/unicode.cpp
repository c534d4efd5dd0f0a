// SPDX-License-Identifier: Apache-2.0
// Normalisation forms, lower case and UTF-8 against properties that Unicode states.
#include <graft/text/unicode.hpp>
#include <graft/text/utf8.hpp>

#include <tests/catch.hpp>

#include <string>

using namespace graft;

TEST_CASE("composition and decomposition of known cases") {
  struct Case {
    std::string text, nfc, nfd;
  };
  auto const one = GENERATE(values<Case>({
      {"", "", ""},
      {"plain", "plain", "plain"},
      {"é", "é", "e\u0301"},
      {"e\u0301", "é", "e\u0301"},
      {"\u1E9B\u0323", "\u1E9B\u0323", "\u017F\u0323\u0307"},  // Unicode Standard Annex 15, figure 6
      {"\u212B", "\u00C5", "A\u030A"},                         // a singleton never comes back
      {"\u0344", "\u0308\u0301", "\u0308\u0301"},              // a pair of marks: excluded from composition
      {"\u0958", "\u0915\u093C", "\u0915\u093C"},              // excluded by the script's users
      {"가", "가", "\u1100\u1161"},
      {"\u1100\u1161\u11A8", "각", "\u1100\u1161\u11A8"},
      {"가\u11A8", "각", "\u1100\u1161\u11A8"},
      {"각\u11A8", "각\u11A8", "\u1100\u1161\u11A8\u11A8"},
      {"q\u0307\u0323", "q\u0323\u0307", "q\u0323\u0307"},
      {"a\u0328\u0301\u0301", "\u0105\u0301\u0301", "a\u0328\u0301\u0301"},
      {"\u0105\u0301", "\u0105\u0301", "a\u0328\u0301"},
      {"\u0301a", "\u0301a", "\u0301a"},
      {"\u1EBF", "\u1EBF", "e\u0302\u0301"},
      {"\U0001D15E", "\U0001D157\U0001D165", "\U0001D157\U0001D165"},
  }));
  CHECK(unicode::nfc(one.text) == one.nfc);
  CHECK(unicode::nfd(one.text) == one.nfd);
}

TEST_CASE("both forms are stable and lead to each other, for every character") {
  int wrong = 0;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text = "a";
    utf8::append(text, c);
    utf8::append(text, 0x323);
    utf8::append(text, c);
    std::string const composed = unicode::nfc(text), decomposed = unicode::nfd(text);
    wrong += unicode::nfc(composed) != composed || unicode::nfd(decomposed) != decomposed ||
             unicode::nfd(composed) != decomposed || unicode::nfc(decomposed) != composed;
  }
  CHECK(wrong == 0);
}

TEST_CASE("lower case") {
  auto const lower = [](std::string const& text) {
    std::string out;
    for (std::size_t k = 0; k < text.size();) unicode::append_lower(out, utf8::next(text, k));
    return out;
  };
  CHECK(lower("AZ az[ÀÞ×Ÿ") == "az az[àþ×ÿ");
  CHECK(lower("ΣΑΣ ЀЯ ԱՖ") == "σασ ѐя աֆ");
  CHECK(lower("İIıi ẞß ǅ Ω Ⓐ Ａ 𐐀") == "i̇iıi ßß ǆ ω ⓐ ａ 𐐨");
}

TEST_CASE("UTF-8 is read back as it was written, and its damage is bounded") {
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string text;
    utf8::append(text, c);
    std::size_t forwards = 0, backwards = text.size();
    if (utf8::next(text, forwards) != c || forwards != text.size() || utf8::previous(text, backwards) != c ||
        backwards != 0)
      FAIL("U+" << static_cast<unsigned>(c));
  }
  // Maximal subparts as in table 3-8 of the Unicode Standard.
  CHECK(utf8::repaired("a\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64") ==
        "a\uFFFD\uFFFD\uFFFDb\uFFFDc\uFFFD\uFFFDd");
  CHECK(utf8::repaired("\xC0\xAF\xE0\x80\xBF\xF4\x91\x92\x93") ==
        "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD");
  CHECK(utf8::repaired("x\xF0\x9F\x99") == "x\uFFFD");
}
