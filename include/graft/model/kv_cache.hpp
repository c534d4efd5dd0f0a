// SPDX-License-Identifier: Apache-2.0
// Keys and values of all sequences, in pages that are shared, counted and reused.
#pragma once

#include <graft/backend/attention.hpp>
#include <graft/core/error.hpp>
#include <graft/core/memory.hpp>
#include <graft/core/scalar.hpp>
#include <graft/core/types.hpp>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <utility>
#include <vector>

namespace graft {

/// The pages of one sequence and how many tokens they hold.
struct KvSequence {
  std::vector<std::int32_t> pages;
  index_t length = 0;
};

/// What keys and values are kept in. Arithmetic is the same for both.
enum class KvStorage : std::uint8_t {
  full,  ///< the backend's Act
  bf16,  ///< rounded to nearest even, half of it to keep and to read at every step; for CpuBackend<float>
};

/// Pages of `page_tokens` tokens, each with keys and values of every layer. A fork shares pages until one side writes.
template <class B>
class KvCache {
 public:
  using Act = typename B::Act;

  KvCache(index_t layers, index_t width, index_t page_tokens = 32, KvStorage storage = KvStorage::full)
      : layers_(layers), width_(width), page_tokens_(page_tokens), narrow_(storage == KvStorage::bf16) {
    expects(page_tokens > 0 && page_tokens <= 64, "graft: a KV page holds 1 to 64 tokens, not ", page_tokens);
    expects(!narrow_ || (on_host && std::same_as<Act, float>),
            "graft: KvStorage::bf16 is for CpuBackend<float>; others keep keys and values in the type of activations");
  }

  index_t page_tokens() const { return page_tokens_; }
  index_t page_elements() const { return layers_ * 2 * page_tokens_ * width_; }
  /// Bytes held, used or free.
  std::size_t bytes() const { return pointers_.size() * static_cast<std::size_t>(page_distance()) * sizeof(Act); }

  /// Makes memory for `tokens` tokens in `sequences` sequences, so that reaching them allocates nothing.
  void reserve(index_t tokens, index_t sequences = 1) {
    longest_ = std::max(longest_, static_cast<std::size_t>(ceil_div(tokens, page_tokens_) + 1));
    auto const wanted = longest_ * static_cast<std::size_t>(sequences);
    while (free_.size() < wanted) add_pages(wanted - free_.size());
  }

  /// Room for `count` more tokens; pages the sequence shares with a fork and will write to are copied first.
  void extend(B& be, KvSequence& sequence, index_t count) {
    if (count == 0) return;
    if (index_t const used = sequence.length % page_tokens_; used != 0) {
      auto& last = sequence.pages[static_cast<std::size_t>(sequence.length / page_tokens_)];
      if (users_[static_cast<std::size_t>(last)] > 1) {
        std::int32_t const own = take();
        if (narrow_)
          copy_narrow(last, own, used);
        else
          copy(be, slots<Act const>(last, used), slots<Act>(own, used));
        give_back(last);
        last = own;
      }
    }
    auto const wanted = static_cast<std::size_t>(ceil_div(sequence.length + count, page_tokens_));
    if (sequence.pages.capacity() < longest_) sequence.pages.reserve(longest_);
    while (sequence.pages.size() < wanted) sequence.pages.push_back(take());
  }

  /// Forgets all tokens from `length` on.
  void truncate(KvSequence& sequence, index_t length) {
    expects(length >= 0 && length <= sequence.length, "graft: cannot truncate a sequence of ", sequence.length,
            " tokens to ", length);
    auto const kept = static_cast<std::size_t>(ceil_div(length, page_tokens_));
    for (std::size_t k = kept; k < sequence.pages.size(); ++k) give_back(sequence.pages[k]);
    sequence.pages.resize(kept);
    sequence.length = length;
  }

  KvSequence fork(KvSequence const& sequence) {
    for (std::int32_t page : sequence.pages) ++users_[static_cast<std::size_t>(page)];
    return sequence;
  }

  KvView<Act> view(index_t layer) const {
    index_t const block = page_tokens_ * width_;
    return {page_data(), 2 * layer * block, (2 * layer + 1) * block, page_tokens_, width_, narrow_};
  }
  /// The same of a cache whose type is forgotten, as a Step holds it.
  static KvView<Act> view_of(void const* cache, index_t layer) {
    return static_cast<KvCache const*>(cache)->view(layer);
  }

 private:
  using Space = typename B::Space;
  static constexpr bool on_host = std::same_as<Space, HostSpace>;

  // The first `tokens` slots of a page, a row for the keys and one for the values of every layer.
  template <class T>
  MatrixView<T, Space> slots(std::int32_t page, index_t tokens) const {
    return matrix_view<Space>(static_cast<T*>(pointers_[static_cast<std::size_t>(page)]), 2 * layers_, tokens * width_,
                              page_tokens_ * width_);
  }
  void copy_narrow(std::int32_t from, std::int32_t to, index_t tokens) const {
    for (index_t layer = 0; layer < layers_; ++layer) {
      auto const kv = view(layer);
      std::copy_n(kv.template key<bf16>(from, 0), tokens * width_, kv.template key<bf16>(to, 0));
      std::copy_n(kv.template value<bf16>(from, 0), tokens * width_, kv.template value<bf16>(to, 0));
    }
  }
  Act* const* page_data() const {
    if constexpr (on_host)
      return pointers_.data();
    else
      return resident_pointers_.data();
  }
  // From a page to the next one of its slab, in elements of Act.
  index_t page_distance() const {
    index_t const elements = narrow_ ? page_elements() / 2 : page_elements();  // which is even
    return round_up(elements, static_cast<index_t>(Memory<Space>::alignment / sizeof(Act)));
  }
  // `count` pages in one allocation, or a single one where there is not as much memory.
  void add_pages(std::size_t count) {
    // room in every list first, so that a failed allocation leaves them consistent and giving back never allocates
    std::size_t const before = pointers_.size();
    free_.reserve(before + count);
    users_.reserve(before + count);
    pointers_.reserve(before + count);
    slabs_.reserve(slabs_.size() + 1);
    auto slab = Storage<Act, Space>::attempt(static_cast<index_t>(count) * page_distance());
    if (slab.size() == 0) count = 1, slab = Storage<Act, Space>(page_distance());
    for (std::size_t k = 0; k < count; ++k) {
      users_.push_back(0);
      pointers_.push_back(slab.data() + static_cast<index_t>(k) * page_distance());
      free_.push_back(static_cast<std::int32_t>(before + k));
    }
    slabs_.push_back(std::move(slab));
    if constexpr (!on_host) {
      auto const all = static_cast<index_t>(pointers_.size());
      if (resident_pointers_.size() < all)  // far ahead, because recorded steps hold where the table lies
        resident_pointers_ = Storage<Act*, Space>(std::max<index_t>(128, 16 * all));
      Memory<Space>::copy_from_host(resident_pointers_.data(), pointers_.data(), pointers_.size() * sizeof(Act*));
    }
  }
  std::int32_t take() {
    // a quarter more, because a GPU waits for all of its work where memory is taken
    if (free_.empty()) add_pages(std::max<std::size_t>(1, pointers_.size() / 4));
    std::int32_t const page = free_.back();
    free_.pop_back();
    users_[static_cast<std::size_t>(page)] = 1;
    return page;
  }
  void give_back(std::int32_t page) {
    if (--users_[static_cast<std::size_t>(page)] == 0) free_.push_back(page);
  }

  index_t layers_, width_, page_tokens_;
  bool narrow_;                             // pages hold bf16
  std::size_t longest_ = 0;                 // pages of the longest sequence room was reserved for
  std::vector<Storage<Act, Space>> slabs_;  ///< of one or more pages
  std::vector<Act*> pointers_;              ///< of every page
  Storage<Act*, Space> resident_pointers_;  ///< the same in Space, where that is not the host's
  std::vector<std::int32_t> users_, free_;
};

}  // namespace graft
