// SPDX-License-Identifier: Apache-2.0
// What the programs for a GPU print: one JSON object per line, which bench/device_page.py reads.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/types.hpp>

#include <cmath>
#include <cstdio>
#include <string>

namespace bench {

using graft::index_t;

/// One result, printed at once when it ends, so that a program that is stopped leaves what it has measured.
class Row {
 public:
  explicit Row(char const* part) { with("part", part); }
  ~Row() {
    std::printf("{%s}\n", line_.c_str());
    std::fflush(stdout);
  }
  Row(Row const&) = delete;
  Row& operator=(Row const&) = delete;

  Row& with(std::string const& key, std::string const& value) { return add(key, '"' + value + '"'); }
  Row& with(std::string const& key, char const* value) { return with(key, std::string(value)); }
  Row& with(std::string const& key, index_t value) { return add(key, std::to_string(value)); }
  Row& with(std::string const& key, double value) {
    char digits[32] = "null";  // JSON has no infinity
    if (std::isfinite(value)) std::snprintf(digits, sizeof digits, "%.9g", value);
    return add(key, digits);
  }
  /// A value and what it has to reach.
  Row& at_least(std::string const& key, double value, double aim) {
    return with(key, value).with(key + " at least", aim);
  }
  Row& at_most(std::string const& key, double value, double aim) {
    return with(key, value).with(key + " at most", aim);
  }

 private:
  Row& add(std::string const& key, std::string const& json) {
    line_ += (line_.empty() ? "\"" : ", \"") + key + "\": " + json;
    return *this;
  }
  std::string line_;
};

}  // namespace bench
