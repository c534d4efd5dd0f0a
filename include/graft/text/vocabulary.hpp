// SPDX-License-Identifier: Apache-2.0
// Finds a token's id by its spelling.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace graft {

/// Refers to the strings it was made from: they must outlive it, in place.
class Vocabulary {
 public:
  /// Empty strings are ids without a token; of equal tokens the first counts.
  explicit Vocabulary(std::vector<std::string> const& tokens) {
    ids_.reserve(tokens.size());
    for (std::size_t k = 0; k < tokens.size(); ++k)
      if (!tokens[k].empty()) ids_.emplace(tokens[k], static_cast<std::int32_t>(k));
  }

  /// -1: there is no such token.
  std::int32_t find(std::string_view token) const {
    auto const found = ids_.find(token);
    return found == ids_.end() ? -1 : found->second;
  }

 private:
  std::unordered_map<std::string_view, std::int32_t> ids_;
};

}  // namespace graft
