// SPDX-License-Identifier: Apache-2.0
// Decode steps that a device is told with one call: recorded once for a size of batch, then done again for other
// tokens, contexts and adapters.
//
// Everything a step brings from the host goes through one parcel, whose layout follows from the sizes the step was
// recorded for; kernels read from it which rows, pages and adapters there are. Rows that pad a batch to the recorded
// size belong to no request: they have no adapters, store no keys and are not delivered.
#pragma once

#include <graft/adapter/plan.hpp>
#include <graft/arch/ends.hpp>
#include <graft/backend/delivery.hpp>
#include <graft/core/parcel.hpp>
#include <graft/layer/rope.hpp>
#include <graft/layer/step.hpp>
#include <graft/model/kv_cache.hpp>

#include <algorithm>
#include <bit>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace graft {

/// Whether a backend can record operations.
template <class B>
concept RecordsGraphs = requires {
  typename B::Graph;
};

/// One new token of every sequence, in host memory; [n] each.
template <class B>
struct DecodeStep {
  std::span<RequestRows<B> const> requests;
  std::span<AttentionSpan const> spans;
  std::span<std::int32_t const> tokens, token_types, position_rows;
  std::span<index_t const> positions;
};

/// The recorded steps of one context.
template <class M>
class DecodeGraphs {
 public:
  using B = typename M::B;
  using Act = typename B::Act;
  using View = MatrixView<Act, typename B::Space>;

  /// Keeps up to `most` of them; the one that was used longest ago goes first.
  explicit DecodeGraphs(index_t most) : most_(static_cast<std::size_t>(std::max<index_t>(0, most))) {}

  /// Rows that a batch of so many is padded to: few sizes serve all, at the price of at most as many rows again, which
  /// cost little where a step waits for weights.
  static index_t padded_rows(index_t rows) { return ceil_power_of_two(rows); }

  /// Whether the operations of a step are the same for any other of its size: one new token of every sequence, all of
  /// them answered, no masks, no vectors to be made, none of the model's own tensors replaced, not more than
  /// `chunk_rows` rows.
  bool takes(DecodeStep<B> const& step, std::size_t wanted, index_t chunk_rows) const {
    auto const rows = step.requests.size();
    if (most_ == 0 || step.tokens.size() != rows || wanted != rows ||
        padded_rows(static_cast<index_t>(rows)) > chunk_rows)
      return false;
    for (auto const& span : step.spans)
      if (span.mask != nullptr) return false;
    for (auto const& request : step.requests) {
      if (request.makes_vectors()) return false;
      if (auto const& set = request.state->adapters(); set != nullptr)
        for (auto const& member : set->members)
          if (!member.module->replacements.empty()) return false;
    }
    return true;
  }

  /// Does the step, one that it takes; out [n, output width] receives the logits. What is recorded is done once as any
  /// other step, which takes the memory it needs.
  void forward(M const& model, B& be, KvCache<B> const& cache, DecodeStep<B> const& step, View out) {
    Recorded& recorded = recorded_for(sizes_of(step), mechanisms_of(step));
    Inputs const inputs = fill(recorded, model, cache, step, out);
    recorded.parcel.send(be);
    if (auto const* pages = cache.view(0).page_data; recorded.pages != pages) {
      recorded.pages = pages;
      recorded.graph = {};  // the cache has grown
    }
    if (!recorded.graph.empty()) return be.launch(recorded.graph);
    auto const work = [&] { run(recorded, model, be, cache, inputs); };
    work();
    recorded.graph = be.record(work);
  }

 private:
  /// What the operations of a recorded step are sized by.
  struct Sizes {
    index_t rows = 0;    ///< of the padded batch
    index_t tokens = 0;  ///< of the longest context
    index_t rank = 0;    ///< sum of a row's ranks at any site
    bool operator==(Sizes const&) const = default;
  };
  struct Recorded {
    Sizes sizes;
    std::vector<Mechanisms> mechanisms;  ///< of the adapters, by site; without adapters none
    Parcel<typename B::Space> parcel;
    typename B::Graph graph;
    void const* pages = nullptr;  ///< of the cache, when it was recorded
    std::uint64_t used = 0;       ///< the last time
  };
  /// Where the operations find a step.
  struct Inputs {
    std::int32_t const *tokens, *token_types, *position_rows;
    MatrixView<Act const, typename B::Space> cosine, sine;
    AttentionSpans spans;
    Delivery<Act> const* delivery;
  };

  static index_t ceil_power_of_two(index_t n) {
    return static_cast<index_t>(std::bit_ceil(static_cast<std::uint64_t>(n)));
  }

  static Sizes sizes_of(DecodeStep<B> const& step) {
    index_t tokens = 0, rank = 0;
    for (auto const& span : step.spans) tokens = std::max(tokens, span.tokens);
    for (auto const& request : step.requests)
      if (auto const& set = request.state->adapters(); set != nullptr) rank = std::max(rank, set->max_rank);
    // From 512 tokens and ranks of 64 on: blocks for what is not there end at once, and there are few of them yet.
    return {padded_rows(static_cast<index_t>(step.tokens.size())), ceil_power_of_two(std::max<index_t>(512, tokens)),
            rank == 0 ? 0 : ceil_power_of_two(std::max<index_t>(64, rank))};
  }

  std::span<Mechanisms const> mechanisms_of(DecodeStep<B> const& step) {
    mechanisms_.clear();
    for (auto const& request : step.requests) merge_mechanisms(request.state->mechanisms(), mechanisms_);
    while (!mechanisms_.empty() && mechanisms_.back() == 0) mechanisms_.pop_back();
    return mechanisms_;
  }

  static bool includes(std::span<Mechanisms const> all, std::span<Mechanisms const> some) {
    for (std::size_t site = 0; site < some.size(); ++site)
      if ((some[site] & ~(site < all.size() ? all[site] : 0)) != 0) return false;
    return true;
  }

  // A step recorded for just these mechanisms; where many combinations come by, one that has all of them.
  Recorded& recorded_for(Sizes const& sizes, std::span<Mechanisms const> mechanisms) {
    for (auto const& recorded : all_)
      if (recorded->sizes == sizes && std::ranges::equal(recorded->mechanisms, mechanisms)) return used(*recorded);
    constexpr std::size_t most_combinations = 4;
    std::vector<Mechanisms> wanted(mechanisms.begin(), mechanisms.end());
    if (!wanted.empty()) {
      auto together = wanted;
      std::size_t combinations = 0;
      Recorded* including = nullptr;
      for (auto const& recorded : all_) {
        if (recorded->sizes != sizes || recorded->mechanisms.empty()) continue;
        ++combinations;
        merge_mechanisms(recorded->mechanisms, together);
        if (includes(recorded->mechanisms, wanted)) including = recorded.get();
      }
      if (combinations >= most_combinations) {
        if (including != nullptr) return used(*including);
        wanted = std::move(together);
      }
    }
    if (all_.size() >= most_)
      all_.erase(
          std::min_element(all_.begin(), all_.end(), [](auto const& a, auto const& b) { return a->used < b->used; }));
    auto& made = *all_.emplace_back(std::make_unique<Recorded>());
    made.sizes = sizes;
    made.mechanisms = std::move(wanted);
    return used(made);
  }
  Recorded& used(Recorded& recorded) {
    recorded.used = ++uses_;
    return recorded;
  }

  Inputs fill(Recorded& recorded, M const& model, KvCache<B> const& cache, DecodeStep<B> const& step, View out) {
    using P = Parcel<typename B::Space>;
    auto& parcel = recorded.parcel;
    index_t const rows = recorded.sizes.rows, used = static_cast<index_t>(step.tokens.size());
    index_t const angles = static_cast<index_t>(model.rope().size());
    index_t const pages = ceil_div(recorded.sizes.tokens, cache.page_tokens());  // of a row
    requests_.assign(step.requests.begin(), step.requests.end());
    requests_.resize(static_cast<std::size_t>(rows), {nullptr, 1});
    parcel.start(Plan<B>::parcel_bytes(rows, rows) + 3 * P::template bytes_of<std::int32_t>(rows) +
                 2 * P::template bytes_of<Act>(rows * angles) + P::template bytes_of<std::int32_t>(rows * pages) +
                 P::template bytes_of<AttentionSpan>(rows) + P::template bytes_of<Delivery<Act>>(1));
    plan_.build(parcel, requests_, {recorded.mechanisms, recorded.sizes.rank});

    Inputs inputs;
    auto const copy_of = [&](std::span<std::int32_t const> values) {
      auto const piece = parcel.template take<std::int32_t>(rows);
      std::copy(values.begin(), values.end(), piece.host);
      return piece.resident;
    };
    inputs.tokens = copy_of(step.tokens);
    inputs.token_types = copy_of(step.token_types);
    inputs.position_rows = copy_of(step.position_rows);

    auto const cosine = parcel.template take<Act>(rows * angles), sine = parcel.template take<Act>(rows * angles);
    rope_angles(std::span<double const>(model.rope()), rope_magnitude(model.config().rope), step.positions,
                matrix_view(cosine.host, used, angles), matrix_view(sine.host, used, angles));
    inputs.cosine = matrix_view<typename B::Space>(static_cast<Act const*>(cosine.resident), rows, angles);
    inputs.sine = matrix_view<typename B::Space>(static_cast<Act const*>(sine.resident), rows, angles);

    auto const page_lists = parcel.template take<std::int32_t>(rows * pages);
    auto const spans = parcel.template take<AttentionSpan>(rows);
    for (index_t n = 0; n < rows; ++n) {
      AttentionSpan span{nullptr, n, 1, -1, 0, nullptr};  // of padding
      if (n < used) span = step.spans[static_cast<std::size_t>(n)];
      std::copy_n(span.pages, ceil_div(span.tokens, cache.page_tokens()), page_lists.host + n * pages);
      span.pages = page_lists.resident + n * pages;
      spans.host[n] = span;
    }
    inputs.spans = AttentionSpans(std::span<AttentionSpan const>(spans.resident, static_cast<std::size_t>(rows)), 1,
                                  recorded.sizes.tokens);

    auto const delivery = parcel.template take<Delivery<Act>>(1);
    *delivery.host = {out.data, out.rows, out.stride};
    inputs.delivery = delivery.resident;
    return inputs;
  }

  void run(Recorded const& recorded, M const& model, B& be, KvCache<B> const& cache, Inputs const& inputs) {
    MemoryLoan const loan(be.arena(), memory_);
    auto const scope = be.scope();
    auto const h = be.arena().template matrix<Act>(recorded.sizes.rows, model.config().width);
    StepChunk<B> const chunk{0, recorded.sizes.rows, &plan_, inputs.spans};
    Step<B> const step{&plan_, {&chunk, 1}, inputs.cosine, inputs.sine, KvCache<B>::view_of, &cache};
    model.ends().embed(be, {inputs.tokens, inputs.token_types, inputs.position_rows, {}, &plan_}, h);
    for (auto const& layer : model.layers()) layer.forward(be, step, h);
    auto const logits = be.arena().template matrix<Act>(recorded.sizes.rows, model.ends().output_width());
    model.ends().logits(be, {nullptr, nullptr, nullptr, {}, &plan_}, h, logits);
    deliver(be, MatrixView<Act const, typename B::Space>(logits), inputs.delivery);
  }

  /// Lets the backend take scratch from the steps' own memory, which never moves: what is recorded points into it.
  /// All of them share it, because the device does one after the other.
  struct MemoryLoan {
    MemoryLoan(BasicArena<typename B::Space>& own, BasicArena<typename B::Space>& lent) : own_(own), lent_(lent) {
      if (lent_.capacity() == 0) lent_.template allocate<std::byte>(1);  // an arena that is not empty keeps its blocks
      std::swap(own_, lent_);
    }
    ~MemoryLoan() { std::swap(own_, lent_); }
    MemoryLoan(MemoryLoan const&) = delete;
    MemoryLoan& operator=(MemoryLoan const&) = delete;
    BasicArena<typename B::Space>&own_, &lent_;
  };

  std::size_t most_;
  std::uint64_t uses_ = 0;
  BasicArena<typename B::Space> memory_;
  std::vector<std::unique_ptr<Recorded>> all_;
  Plan<B> plan_;
  std::vector<RequestRows<B>> requests_;
  std::vector<Mechanisms> mechanisms_;
};

}  // namespace graft
