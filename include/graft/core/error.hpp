// SPDX-License-Identifier: Apache-2.0
// Run-time errors: a wrong call is a ContractError, a bad file a FormatError, a failed call of CUDA a CudaError. Each
// carries one sentence.
#pragma once

#include <graft/config.hpp>

#include <concepts>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>

namespace graft {

/// Base of everything graft throws.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// The caller broke a precondition; the message holds the numbers. Raised before any work starts.
struct ContractError : Error {
  using Error::Error;
};
/// A file is not what it claims to be; the message names path, tensor or key, expected and found.
struct FormatError : Error {
  using Error::Error;
};

/// The GPU or its driver refused; the message names the call, the error and what CUDA says about it.
struct CudaError : Error {
  using Error::Error;
};

/// Called instead of `throw` when the library is built with -fno-exceptions; must not return.
using ErrorHandler = void (*)(const char* message);

namespace detail {
inline ErrorHandler& error_handler() {
  static ErrorHandler handler = [](const char* message) {
    std::fprintf(stderr, "graft: %s\n", message);
    std::abort();
  };
  return handler;
}
}  // namespace detail

inline void set_error_handler(ErrorHandler handler) { detail::error_handler() = handler; }

namespace detail {
// as streams print them, which would take a compiler longer to read than all of the core
inline void append(std::string& to, std::string_view part) { to += part; }
inline void append(std::string& to, char part) { to += part; }
[[gnu::noinline]] inline void append_integer(std::string& to, long long part) { to += std::to_string(part); }
[[gnu::noinline]] inline void append_integer(std::string& to, unsigned long long part) { to += std::to_string(part); }
inline void append(std::string& to, std::signed_integral auto part) {
  append_integer(to, static_cast<long long>(part));
}
inline void append(std::string& to, std::unsigned_integral auto part) {
  append_integer(to, static_cast<unsigned long long>(part));
}
inline void append(std::string& to, double part) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%g", part);
  to += digits;
}
/// What has a string() of its own, such as a path, in quotes.
template <class T>
requires requires(T const& part) {
  { part.string() } -> std::convertible_to<std::string>;
}
void append(std::string& to, T const& part) {
  to += '"';
  to += part.string();
  to += '"';
}

/// A part of a sentence and how to append it.
struct TextPart {
  void const* part;
  void (*append_to)(std::string& to, void const* part);
};
template <class T>
TextPart text_part(T const& part) {
  return {&part, [](std::string& to, void const* any) { append(to, *static_cast<T const*>(any)); }};
}
// one for literals of all lengths
inline TextPart text_part(char const* part) {
  return {part, [](std::string& to, void const* any) { append(to, static_cast<char const*>(any)); }};
}
[[gnu::noinline]] inline std::string joined(std::initializer_list<TextPart> parts) {
  std::string out;
  for (auto const& [part, append_to] : parts) append_to(out, part);
  return out;
}
}  // namespace detail

/// The parts joined into one sentence: text("expected ", 3, " rows").
template <class... Parts>
std::string text(Parts const&... parts) {
  return detail::joined({detail::text_part(parts)...});
}

namespace detail {
// a list of parts, whatever they are, so that a sentence costs its caller no more than to name them
template <class E>
[[noreturn, gnu::cold, gnu::noinline]] void raise_sentence(std::initializer_list<TextPart> parts) {
#if GRAFT_EXCEPTIONS
  throw E(joined(parts));
#else
  error_handler()(joined(parts).c_str());
  std::abort();
#endif
}
}  // namespace detail

/// Throws an E whose message is the parts joined, as `text` joins them: raise<FormatError>(path, ": is empty").
template <class E, class... Parts>
[[noreturn]] void raise(Parts const&... parts) {
  detail::raise_sentence<E>({detail::text_part(parts)...});
}

/// Raises ContractError with the parts joined unless `ok`.
template <class... Parts>
void expects(bool ok, Parts const&... parts) {
  if (!ok) raise<ContractError>(parts...);
}

}  // namespace graft
