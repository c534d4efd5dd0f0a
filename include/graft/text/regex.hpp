// SPDX-License-Identifier: Apache-2.0
// A compiled regular expression (PCRE2, Unicode properties on) that cuts text into matches and what lies between.
#pragma once

#include <graft/core/error.hpp>

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace graft {

/// Unicode's White_Space, to stand inside a character class. PCRE2's \s means something else: it takes U+180E too.
inline constexpr std::string_view white_space_class =
    R"(\x{9}-\x{D}\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

/// Immutable after construction; any number of threads may use it at once.
class Regex {
 public:
  explicit Regex(std::string_view pattern) {
    int error = 0;
    std::size_t where = 0;
    code_.reset(pcre2_compile_8(reinterpret_cast<PCRE2_SPTR8>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP,
                                &error, &where, nullptr),
                [](pcre2_code_8* code) { pcre2_code_free_8(code); });
    if (!code_)
      raise<ContractError>("regular expression \"", pattern, "\" is wrong at byte ", where, ": ", message(error));
    pcre2_jit_compile_8(code_.get(), PCRE2_JIT_COMPLETE);  // without a JIT the interpreter does the same, slower
    // The default limit of ten million steps is reached by a few megabytes of white space.
    context_.reset(pcre2_match_context_create_8(nullptr),
                   [](pcre2_match_context_8* context) { pcre2_match_context_free_8(context); });
    pcre2_set_match_limit_8(context_.get(), ~std::uint32_t{0});
  }

  /// Calls piece(part, matched) for the matches and the gaps between them, in order; together they are `subject`,
  /// which must be valid UTF-8.
  template <class F>
  void split(std::string_view subject, F&& piece) const {
    struct Free {
      void operator()(pcre2_match_data_8* data) const { pcre2_match_data_free_8(data); }
    };
    std::unique_ptr<pcre2_match_data_8, Free> const data(pcre2_match_data_create_8(1, nullptr));
    std::size_t const* const range = pcre2_get_ovector_pointer_8(data.get());
    std::size_t done = 0;
    while (done < subject.size()) {
      // Checking the subject's UTF-8 again at every match would make the whole quadratic.
      int const found = pcre2_match_8(code_.get(), reinterpret_cast<PCRE2_SPTR8>(subject.data()), subject.size(), done,
                                      PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, data.get(), context_.get());
      if (found == PCRE2_ERROR_NOMATCH) break;
      if (found < 0) raise<Error>("regular expression failed: ", message(found));
      if (range[0] > done) piece(subject.substr(done, range[0] - done), false);
      piece(subject.substr(range[0], range[1] - range[0]), true);
      done = range[1];
    }
    if (done < subject.size()) piece(subject.substr(done), false);
  }

  /// Whether there is a match anywhere in `subject`, which must be valid UTF-8.
  bool found_in(std::string_view subject) const {
    bool found = false;
    split(subject, [&](std::string_view, bool matched) { found = found || matched; });
    return found;
  }

 private:
  static std::string message(int error) {
    char buffer[128] = {};
    pcre2_get_error_message_8(error, reinterpret_cast<PCRE2_UCHAR8*>(buffer), sizeof buffer);
    return buffer;
  }

  std::shared_ptr<pcre2_code_8> code_;
  std::shared_ptr<pcre2_match_context_8> context_;
};

}  // namespace graft
