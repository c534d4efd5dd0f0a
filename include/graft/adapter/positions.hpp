// SPDX-License-Identifier: Apache-2.0
// Which tokens of a sequence an intervention acts on.
#pragma once

#include <graft/core/types.hpp>

#include <vector>

namespace graft {

/// All tokens, or a list of places: 0 is the sequence's first token, 1 the next; -1 is the prompt's last token, -2 the
/// one before it. A place that the sequence does not have means nothing.
struct Positions {
  std::vector<index_t> list;  ///< empty: all

  static Positions last_prompt() { return {{-1}}; }
  bool all() const { return list.empty(); }
  /// Whether the sequence's token `place` is one of them, where the prompt ends before token `prompt_end`.
  bool contain(index_t place, index_t prompt_end) const {
    for (index_t const one : list)
      if ((one < 0 ? prompt_end + one : one) == place) return true;
    return all();
  }
  friend bool operator==(Positions const&, Positions const&) = default;
};

}  // namespace graft
