// SPDX-License-Identifier: Apache-2.0
// Run-time errors: a wrong call is a ContractError, a bad file a FormatError, a failed call of CUDA a CudaError. Each
// carries one sentence.
#pragma once

#include <graft/config.hpp>

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>

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

/// The parts joined into one sentence: text("expected ", 3, " rows").
template <class... Parts>
std::string text(Parts const&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

template <class E>
[[noreturn]] void raise(std::string const& message) {
#if GRAFT_EXCEPTIONS
  throw E(message);
#else
  detail::error_handler()(message.c_str());
  std::abort();
#endif
}

/// Raises ContractError with the parts joined unless `ok`.
template <class... Parts>
void expects(bool ok, Parts const&... parts) {
  if (!ok) raise<ContractError>(text(parts...));
}

}  // namespace graft
