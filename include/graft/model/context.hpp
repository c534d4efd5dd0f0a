// SPDX-License-Identifier: Apache-2.0
// One forward for everything: prefill, decode and mixtures of both, every sequence with its own adapters.
#pragma once

#include <graft/arch/ends.hpp>
#include <graft/model/decode_graphs.hpp>
#include <graft/model/model.hpp>
#include <graft/model/sequence_input.hpp>

#include <algorithm>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace graft {

struct ContextOptions {
  index_t page_tokens = 32;
  /// Rows that pass through a layer together; bounds scratch memory, not results. 0: as many as keep the backend busy,
  /// 512 on the host and 4096 on a device, where a product of 512 rows leaves half of the multiprocessors idle.
  index_t chunk_rows = 0;
  /// On a device: how many recorded decode steps are kept, one for each size of batch; 0: none is recorded.
  index_t decode_graphs = 32;
  KvStorage kv_storage = KvStorage::full;
};

/// What a context is, whatever the model's list of policies.
template <class Arch, class B_>
class BackboneContext {
 public:
  using B = B_;
  using Act = typename B::Act;
  using View = MatrixView<Act, typename B::Space>;

  B& backend() { return be_; }
  KvCache<B>& cache() { return cache_; }
  Backbone<Arch, B> const& backbone() const { return model_; }

  /// A new sequence with these adapters; later loads and unloads do not touch it.
  Sequence<B> start(std::span<AdapterUse const> adapters = {});
  Sequence<B> start(std::initializer_list<AdapterUse> adapters) {
    return start(std::span<AdapterUse const>(adapters.begin(), adapters.size()));
  }

  /// Runs all inputs as one batch, inputs in order, tokens in order: batch row n. `wanted` lists batch rows, ascending;
  /// out [wanted, output width] receives their logits, or last hidden states of an encoder without a head. A classifier
  /// answers in one row of each input, and no other may be wanted. Sequences grow by their tokens. ContractError
  /// before any work when something does not fit; then nothing has changed.
  void forward(std::span<SequenceInput<B> const> inputs, std::span<index_t const> wanted, View out);

  /// The same with the logits in host memory, widened to f32; waits for a device.
  void forward(std::span<SequenceInput<B> const> inputs, std::span<index_t const> wanted,
               MatrixView<float, HostSpace> out) requires(!std::same_as<View, MatrixView<float, HostSpace>>) {
    ArenaScope scope(be_.arena());
    auto const logits = be_.arena().template matrix<Act>(out.rows, out.cols);
    forward(inputs, wanted, logits);
    auto const widen = [&](Act const* from) {
      for (index_t n = 0; n < out.rows; ++n)
        for (index_t k = 0; k < out.cols; ++k) out(n, k) = static_cast<float>(from[n * out.cols + k]);
    };
    if constexpr (on_host) {
      widen(logits.data);
    } else {
      host_logits_.resize(static_cast<std::size_t>(logits.size()));
      copy_to_host(be_, static_cast<Act const*>(logits.data), host_logits_.data(), logits.size());
      widen(host_logits_.data());
    }
  }

  /// Logits of every input's last token, [inputs, output width].
  template <class T, class Space>
  void forward_last(std::span<SequenceInput<B> const> inputs, MatrixView<T, Space> out) {
    wanted_.clear();
    index_t row = 0;
    for (auto const& input : inputs) wanted_.push_back((row += static_cast<index_t>(input.tokens.size())) - 1);
    forward(inputs, wanted_, out);
  }
  /// What a classifier says of every input, [inputs, labels].
  template <class T, class Space>
  void classify(std::span<SequenceInput<B> const> inputs, MatrixView<T, Space> out) {
    wanted_.clear();
    index_t row = 0;
    for (auto const& input : inputs) {
      wanted_.push_back(row + answer_row(input.tokens));
      row += static_cast<index_t>(input.tokens.size());
    }
    forward(inputs, wanted_, out);
  }
  /// The row of an input in which a classifier answers.
  index_t answer_row(std::span<std::int32_t const> tokens) const {
    return model_.config().answer_row(tokens, Arch::causal);
  }

 protected:
  BackboneContext(Backbone<Arch, B> const& model, ModuleBank<B>& bank, B& backend, ContextOptions options);

 private:
  static constexpr bool on_host = std::same_as<typename B::Space, HostSpace>;
  static constexpr bool records = RecordsGraphs<B> && Arch::causal;
  struct NoGraphs {
    explicit NoGraphs(index_t) {}
  };

  // Of host data, a pointer that kernels can read until the forward ends.
  template <class T>
  T const* resident(std::vector<T> const& host) {
    if constexpr (on_host)
      return host.data();
    else
      return upload(be_, std::span<T const>(host));
  }

  struct Angles {
    MatrixView<Act const, typename B::Space> cosine, sine;  ///< [n, angles]
  };
  Angles position_angles() {
    auto const rows = static_cast<index_t>(positions_.size()), angles = static_cast<index_t>(model_.rope().size());
    auto const fill = [&](MatrixView<Act> cosine, MatrixView<Act> sine) {
      rope_angles(std::span<double const>(model_.rope()), rope_magnitude(model_.config().rope),
                  std::span<index_t const>(positions_), cosine, sine);
    };
    if constexpr (on_host) {
      auto const cosine = be_.arena().template matrix<Act>(rows, angles);
      auto const sine = be_.arena().template matrix<Act>(rows, angles);
      fill(cosine, sine);
      return {cosine, sine};
    } else {
      angles_.resize(static_cast<std::size_t>(2 * rows * angles));
      Act* const host = angles_.data();
      fill(matrix_view(host, rows, angles), matrix_view(host + rows * angles, rows, angles));
      Act const* const copied = resident(angles_);
      return {matrix_view<typename B::Space>(copied, rows, angles),
              matrix_view<typename B::Space>(copied + rows * angles, rows, angles)};
    }
  }

  // Spans where the backend reads them, with the pages and masks they point to.
  AttentionSpans resident_spans(std::vector<AttentionSpan> const& spans) {
    AttentionSpans const known{std::span<AttentionSpan const>(spans)};
    if constexpr (on_host) {
      return known;
    } else {
      span_pages_.clear(), span_masks_.clear();
      for (auto const& span : spans) {
        span_pages_.insert(span_pages_.end(), span.pages, span.pages + ceil_div(span.tokens, cache_.page_tokens()));
        if (span.mask != nullptr) span_masks_.insert(span_masks_.end(), span.mask, span.mask + span.rows * span.tokens);
      }
      auto const* pages = resident(span_pages_);
      auto const* masks = resident(span_masks_);
      resident_spans_ = spans;
      for (auto& span : resident_spans_) {
        span.pages = std::exchange(pages, pages + ceil_div(span.tokens, cache_.page_tokens()));
        if (span.mask != nullptr) span.mask = std::exchange(masks, masks + span.rows * span.tokens);
      }
      return {resident(resident_spans_), known};
    }
  }

  // As a step that a device has recorded; false: it is not one, and nothing was done.
  bool replay(std::span<index_t const> wanted, View out) {
    if constexpr (records) {
      DecodeStep<B> const step{requests_, whole_, tokens_, token_types_, position_rows_, positions_};
      if (!graphs_.takes(step, wanted.size(), options_.chunk_rows)) return false;
      graphs_.forward(model_, be_, cache_, step, out);
      return true;
    }
    return false;
  }

  void run(std::span<SequenceInput<B> const> inputs, std::span<index_t const> wanted, View out) {
    ArenaScope scope(be_.arena());
    auto const rows = static_cast<index_t>(tokens_.size());
    plan_.build(be_, requests_);
    cut_chunks(rows);
    auto const h = be_.arena().template matrix<Act>(rows, model_.config().width);
    auto const angles = position_angles();
    Step<B> const step{&plan_, steps_, angles.cosine, angles.sine, KvCache<B>::view_of, &cache_};
    model_.ends().embed(
        be_, {resident(tokens_), resident(token_types_), resident(position_rows_), request_spans_, &plan_}, h);
    for (auto const& layer : model_.layers()) layer.forward(be_, step, h);
    if (!wanted.empty()) write_logits(inputs, wanted, h, out);
  }

  // What the inputs bring, in host memory, and room for it in the cache.
  void gather(std::span<SequenceInput<B> const> inputs) {
    tokens_.clear(), token_types_.clear(), positions_.clear(), position_rows_.clear();
    requests_.clear(), request_spans_.clear(), whole_.clear();
    for (auto const& in : inputs) {
      auto const count = static_cast<index_t>(in.tokens.size());
      index_t const length = in.sequence->length();
      auto& state = in.sequence->state();
      cache_.extend(be_, in.sequence->kv(), count);
      request_spans_.push_back({static_cast<index_t>(tokens_.size()), count, state.adapters().get()});
      bool const observes = state.generates() && (!state.ready() || in.regenerate);
      bool const prompt_known = length == 0 || in.regenerate || in.prompt_tokens >= 0;
      index_t const prompt = detail::prompt_end<Arch>(in);
      requests_.push_back({&state, count, observes ? prompt - length : 0, length, prompt_known ? prompt : -1});
      whole_.push_back({in.sequence->kv().pages.data(), static_cast<index_t>(tokens_.size()), count, length,
                        length + count, in.mask.empty() ? nullptr : in.mask.data()});
      index_t position = length;
      for (index_t k = 0; k < count; ++k) {
        auto const at = static_cast<std::size_t>(k);
        bool const uncounted = model_.config().uncounted(in.tokens[at]);
        tokens_.push_back(in.tokens[at]);
        token_types_.push_back(in.token_types.empty() ? 0 : in.token_types[at]);
        positions_.push_back(!in.positions.empty() ? in.positions[at] : uncounted ? -1 : position++);
        position_rows_.push_back(model_.config().position_row(positions_.back()));
      }
    }
  }

  // Slices of at most chunk_rows rows, each with the spans and the plan of its rows.
  void cut_chunks(index_t rows) {
    auto const count = static_cast<std::size_t>(ceil_div(rows, options_.chunk_rows));
    if (chunks_.size() < count) chunks_.resize(count);
    steps_.clear();
    for (std::size_t c = 0; c < count; ++c) {
      auto& chunk = chunks_[c];
      index_t const first = static_cast<index_t>(c) * options_.chunk_rows,
                    last = std::min(rows, first + options_.chunk_rows);
      chunk.requests.clear(), chunk.spans.clear();
      for (std::size_t q = 0; q < requests_.size(); ++q) {
        auto const& span = whole_[q];
        index_t const begin = std::max(first, span.first_row), end = std::min(last, span.first_row + span.rows);
        if (begin >= end) continue;
        index_t const skipped = begin - span.first_row;
        auto const& whole = requests_[q];
        chunk.requests.push_back({whole.state, end - begin, 0, whole.position + skipped, whole.prompt_end});
        chunk.spans.push_back({span.pages, begin - first, end - begin, span.first_token + skipped, span.tokens,
                               span.mask == nullptr ? nullptr : span.mask + skipped * span.tokens});
      }
      if (count > 1) chunk.plan.build(be_, chunk.requests);
      steps_.push_back({first, last - first, count > 1 ? &chunk.plan : &plan_, resident_spans(chunk.spans)});
    }
  }

  void write_logits(std::span<SequenceInput<B> const> inputs, std::span<index_t const> wanted, View h, View out) {
    auto const rows = rows_of(wanted, h);
    requests_.clear(), request_spans_.clear();
    std::size_t next = 0;
    index_t end = 0;
    for (auto const& in : inputs) {
      end += static_cast<index_t>(in.tokens.size());
      auto const first = static_cast<index_t>(next);
      while (next < wanted.size() && wanted[next] < end) ++next;
      index_t const count = static_cast<index_t>(next) - first;
      if (count == 0) continue;
      requests_.push_back({&in.sequence->state(), count});
      request_spans_.push_back({first, count, in.sequence->state().adapters().get()});
    }
    head_plan_.build(be_, requests_);
    model_.ends().logits(be_, {nullptr, nullptr, nullptr, request_spans_, &head_plan_}, rows, out);
  }

  // The listed rows; neighbours are copied together.
  View rows_of(std::span<index_t const> wanted, View h) {
    auto const rows = be_.arena().template matrix<Act>(static_cast<index_t>(wanted.size()), h.cols);
    for (std::size_t first = 0, next = 0; first < wanted.size(); first = next) {
      while (next < wanted.size() && wanted[next] == wanted[first] + static_cast<index_t>(next - first)) ++next;
      auto const count = static_cast<index_t>(next - first);
      copy(be_, MatrixView<Act const, typename B::Space>(h.row_range(wanted[first], count)),
           rows.row_range(static_cast<index_t>(first), count));
    }
    return rows;
  }

  struct Chunk {
    std::vector<RequestRows<B>> requests;
    std::vector<AttentionSpan> spans;
    Plan<B> plan;
  };

  Backbone<Arch, B> const& model_;
  ModuleBank<B>& bank_;
  B& be_;
  ContextOptions options_;
  KvCache<B> cache_;
  std::conditional_t<records, DecodeGraphs<Backbone<Arch, B>>, NoGraphs> graphs_;
  Plan<B> plan_, head_plan_;
  std::vector<RequestRows<B>> requests_;
  std::vector<RequestSpan<B>> request_spans_;
  std::vector<AttentionSpan> whole_;
  std::vector<Chunk> chunks_;
  std::vector<StepChunk<B>> steps_;
  std::vector<std::int32_t> tokens_, token_types_, position_rows_;
  std::vector<index_t> positions_, wanted_;
  // on their way to or from a device
  std::vector<Act> angles_, host_logits_;
  std::vector<std::int32_t> span_pages_;
  std::vector<std::uint8_t> span_masks_;
  std::vector<AttentionSpan> resident_spans_;
};

template <class Arch, class B>
BackboneContext<Arch, B>::BackboneContext(Backbone<Arch, B> const& model, ModuleBank<B>& bank, B& backend,
                                          ContextOptions options)
    : model_(model),
      bank_(bank),
      be_(backend),
      options_(options),
      cache_(model.config().layers, model.config().kv_heads * model.config().head_dim, options.page_tokens,
             options.kv_storage),
      graphs_(options.decode_graphs) {
  expects(options.chunk_rows >= 0, "graft: chunk_rows must not be negative");
  if (options.chunk_rows == 0) options_.chunk_rows = on_host ? 512 : 4096;
}

template <class Arch, class B>
Sequence<B> BackboneContext<Arch, B>::start(std::span<AdapterUse const> adapters) {
  return Sequence<B>(cache_, bank_.resolve(adapters), model_.sites());
}

template <class Arch, class B>
void BackboneContext<Arch, B>::forward(std::span<SequenceInput<B> const> inputs, std::span<index_t const> wanted,
                                       View out) {
  detail::check_inputs(model_, cache_, inputs, wanted, out.rows, out.cols);
  gather(inputs);
  if (!replay(wanted, out)) run(inputs, wanted, out);
  for (auto const& input : inputs) {
    input.sequence->kv().length += static_cast<index_t>(input.tokens.size());
    input.sequence->state().set_ready(true);
  }
}

/// A KV cache and scratch memory for steps over one model; used by one thread at a time.
template <class M>
class Context : public BackboneContext<typename M::Arch, typename M::B> {
 public:
  Context(M& model, typename M::B& backend, ContextOptions options = {})
      : BackboneContext<typename M::Arch, typename M::B>(model, model.bank(), backend, options), of_(model) {}

  M& model() { return of_; }

 private:
  M& of_;
};

}  // namespace graft

#if defined(GRAFT_EXTERN_KERNELS)
#include <graft/model/compiled.hpp>
#endif
