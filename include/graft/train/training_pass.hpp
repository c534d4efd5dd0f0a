// SPDX-License-Identifier: Apache-2.0
// Forward and back through a model, for a training loop of your own.
//
//     pass.forward(sequences, gradients);      hidden states of all rows
//     pass.head(wanted, loss);                 logits of the wanted rows, a few at a time; loss makes dL/dlogits
//     pass.backward();                         dL/dparameters are added to gradients
#pragma once

#include <graft/adapter/gradients.hpp>
#include <graft/backend/backend.hpp>
#include <graft/core/error.hpp>
#include <graft/core/executor.hpp>
#include <graft/model/model.hpp>
#include <graft/train/recorded_operations.hpp>
#include <graft/train/resident_copy.hpp>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

namespace graft {

/// One sequence of a training batch; it starts empty. Sequences follow each other, nothing is padded.
template <class B>
struct TrainingSequence {
  std::span<std::int32_t const> tokens;                ///< at least one
  std::shared_ptr<AdapterSet<B> const> adapters = {};  ///< from Bank::resolve; null: none
  index_t prompt_tokens = -1;                          ///< what PEDRO reads; -1: all. An encoder's prompt is all of it
  std::span<std::int32_t const> token_types = {};      ///< [tokens] or empty
  double dropout = 0;                                  ///< rate on what low-rank deltas see
  std::uint64_t dropout_key = 0;                       ///< of (seed, step, example): the same key, the same mask
};

struct TrainingOptions {
  /// Which layers keep only their input and run their forward again on the way back; one entry stands for all layers.
  /// The result is the same, bit for bit.
  std::vector<bool> recompute = {false};
  index_t head_rows = 128;  ///< rows whose logits exist at the same time
};

/// Buffers for steps over one model; used by one thread at a time.
template <class M>
class TrainingPass {
  static_assert(
      TrainingBackend<typename M::B>,
      "graft: this model's backend cannot train: it is not a TrainingBackend (see graft/backend/backend.hpp)");

 public:
  using B = typename M::B;
  using Act = typename B::Act;
  using View = MatrixView<Act, typename B::Space>;
  using ConstView = MatrixView<Act const, typename B::Space>;

  TrainingPass(M& model, B& backend, TrainingOptions options = {})
      : model_(model),
        be_(backend),
        options_(std::move(options)),
        embedding_(backend, gradient_memory_),
        head_(backend, gradient_memory_),
        shared_(backend, gradient_memory_) {
    auto const layers = static_cast<std::size_t>(model.config().layers);
    auto& recompute = options_.recompute;
    if (recompute.size() == 1) recompute.resize(layers, recompute[0]);
    expects(recompute.size() == layers, "graft: recompute names ", recompute.size(), " layers, the model has ", layers);
    expects(options_.head_rows > 0, "graft: head_rows must be positive");
    own_.resize(layers);
    inputs_.resize(layers);
    for (std::size_t l = 0; l < layers; ++l)
      if (!recompute[l]) own_[l] = std::make_unique<Recorder<B>>(backend, gradient_memory_);
  }
  TrainingPass(TrainingPass const&) = delete;
  TrainingPass& operator=(TrainingPass const&) = delete;

  M& model() { return model_; }
  B& backend() { return be_; }

  /// All sequences as one batch, in order; batch row n. `gradients` says which modules are trained and must live until
  /// backward() has returned. ContractError before any work when something does not fit.
  void forward(std::span<TrainingSequence<B> const> sequences, Gradients<B>& gradients) {
    check(sequences);
    gradients_ = &gradients;
    first_trained_ = first_trained();
    prepare(sequences);

    index_t const n = rows();
    embedding_.start(gradients);
    auto const embedded = embedding_.arena().template matrix<Act>(n, width());
    embedded_ = embedded;
    embedding_.dropout = dropout_;
    model_.ends().embed(embedding_,
                        {resident_tokens_.put(be_, tokens_), resident_types_.put(be_, token_types_),
                         resident_positions_.put(be_, position_rows_), request_spans_, &plan_},
                        embedded);
    hidden_.make_room(n * width());
    dh_.make_room(n * width());
    copy(be_, ConstView(embedded), stream());
    for (std::size_t l = 0; l < model_.layers().size(); ++l) {
      if (own_[l] == nullptr) {
        inputs_[l].make_room(n * width());
        copy(be_, ConstView(stream()), input(l));
      }
      record(l, stream());
    }
    clear(be_, hidden_gradient());
  }

  /// Rows of the batch.
  index_t rows() const { return static_cast<index_t>(tokens_.size()); }
  /// The residual stream [n, d] behind the last layer, which the head reads.
  ConstView hidden() const { return stream(); }
  /// dL/dhidden [n, d], for losses that read the residual stream itself; zero after forward, head() adds to it.
  View hidden_gradient() { return {dh_.data(), rows(), width(), width()}; }

  /// Makes the logits of the wanted rows (ascending), at most head_rows at a time, in order. loss(first, logits) gets
  /// those of wanted[first, first + logits.rows), [rows, output width], and must replace them by dL/dlogits. A
  /// classifier answers in one row of each sequence, ModelConfig::answer_row.
  void head(std::span<index_t const> wanted, FunctionRef<void(index_t first, View logits)> loss) {
    each_head_chunk(wanted, [&](index_t first, View h, View logits) {
      loss(first, logits);
      ArenaScope scope(gradient_memory_);
      head_.set_gradient(logits, logits.data);
      head_.backward();
      gather_rows_backward(be_, head_index_, ConstView(head_.gradient(h)), hidden_gradient());
    });
    gradients_->added_by(be_);
  }
  /// Only shows the logits, for validation.
  void logits(std::span<index_t const> wanted, FunctionRef<void(index_t first, View logits)> see) {
    each_head_chunk(wanted, [&](index_t first, View, View logits) { see(first, logits); });
  }

  /// From dL/dhidden to the gradients of everything in training. Once after each forward.
  void backward() {
    for (std::size_t l = model_.layers().size(); l-- > 0 && static_cast<index_t>(l) >= first_trained_;) {
      auto const h = own_[l] == nullptr ? input(l) : stream();
      if (own_[l] == nullptr) record(l, h);
      auto& recorder = recorder_of(l);
      ArenaScope scope(gradient_memory_);
      recorder.set_gradient(h, dh_.data());
      recorder.backward();
    }
    if (first_trained_ < 0) {
      ArenaScope scope(gradient_memory_);
      embedding_.set_gradient(embedded_, dh_.data());
      embedding_.backward();
    }
    gradients_->added_by(be_);
  }

 private:
  using Space = typename B::Space;
  static constexpr index_t page_tokens = 64;

  index_t width() const { return model_.config().width; }
  View stream() const { return {hidden_.data(), rows(), width(), width()}; }
  View input(std::size_t l) const { return {inputs_[l].data(), rows(), width(), width()}; }
  Recorder<B>& recorder_of(std::size_t l) { return own_[l] != nullptr ? *own_[l] : shared_; }

  // The lowest layer the way back must reach; -1: the embedding.
  index_t first_trained() const {
    if (gradients_->tensors_wanted()) return -1;
    index_t lowest = model_.config().layers;
    for (auto const& module : gradients_->modules())
      for (std::size_t s = 0; s < module->back.entries.size(); ++s) {
        if (module->back.entries[s] < 0) continue;
        auto const& site = model_.sites()[static_cast<index_t>(s)];
        if (site.layer >= 0 || site.kind == SiteKind::embedding) lowest = std::min(lowest, site.layer);
      }
    return lowest;
  }

  void check(std::span<TrainingSequence<B> const> sequences) const {
    expects(!sequences.empty(), "graft: a training batch needs a sequence");
    for (std::size_t k = 0; k < sequences.size(); ++k) {
      auto const& s = sequences[k];
      auto const count = static_cast<index_t>(s.tokens.size());
      expects(count > 0, "graft: sequence ", k, " has no tokens");
      check_tokens(model_.config(), "sequence", k, s.tokens, s.token_types);
      expects(s.prompt_tokens >= -1 && s.prompt_tokens <= count, "graft: sequence ", k, " has ", count,
              " tokens, its prompt cannot have ", s.prompt_tokens);
      expects(s.adapters == nullptr || !s.adapters->generates() || s.prompt_tokens != 0, "graft: sequence ", k,
              " has no prompt, but its adapters make their vectors from one");
      expects(s.dropout >= 0 && s.dropout < 1, "graft: dropout ", s.dropout, " of sequence ", k, " is not in [0, 1)");
      if constexpr (requires { M::Arch::learned_positions; }) {
        index_t const most = model_.config().positions - model_.config().position_offset;
        expects(count <= most, "graft: sequence ", k, " has ", count, " tokens, the model has ", most, " positions");
      }
    }
  }

  void prepare(std::span<TrainingSequence<B> const> sequences) {
    tokens_.clear(), token_types_.clear(), positions_.clear(), position_rows_.clear(), rates_.clear(), keys_.clear();
    requests_.clear(), request_spans_.clear(), spans_.clear(), pages_.clear();
    std::swap(states_, idle_states_);
    states_.clear();
    std::int32_t page = 0;
    for (auto const& s : sequences) {
      auto const count = static_cast<index_t>(s.tokens.size()), first = static_cast<index_t>(tokens_.size());
      states_.push_back(state_of(s.adapters));
      index_t const prompt = !M::Arch::causal || s.prompt_tokens < 0 ? count : s.prompt_tokens;
      requests_.push_back({states_.back().get(), count, states_.back()->generates() ? prompt : 0, 0, prompt});
      request_spans_.push_back({first, count, s.adapters.get()});
      index_t position = 0;
      for (index_t k = 0; k < count; ++k) {
        auto const at = static_cast<std::size_t>(k);
        tokens_.push_back(s.tokens[at]);
        token_types_.push_back(s.token_types.empty() ? 0 : s.token_types[at]);
        positions_.push_back(model_.config().uncounted(s.tokens[at]) ? -1 : position++);
        position_rows_.push_back(model_.config().position_row(positions_.back()));
        rates_.push_back(s.dropout);
        keys_.push_back(Random(s.dropout_key).next() + static_cast<std::uint64_t>(k) * 0x9e3779b97f4a7c15u);
      }
      for (index_t k = 0; k < ceil_div(count, page_tokens); ++k) pages_.push_back(page++);
    }
    plan_.build(be_, requests_, PlanUse::training);
    std::erase_if(idle_states_, [&](auto const& idle) {
      return std::none_of(states_.begin(), states_.end(),
                          [&](auto const& state) { return state->adapters() == idle->adapters(); });
    });
    dropout_ = dropout_of(rates_, keys_, resident_rates_, resident_keys_);
    // keys and values of one layer at a time
    index_t const kv = model_.config().kv_heads * model_.config().head_dim;
    kv_memory_.make_room(2 * page * page_tokens * kv);
    page_data_.resize(static_cast<std::size_t>(page));
    for (std::int32_t p = 0; p < page; ++p)
      page_data_[static_cast<std::size_t>(p)] = kv_memory_.data() + 2 * p * page_tokens * kv;
    kv_ = {resident_page_data_.put(be_, page_data_), 0, page_tokens * kv, page_tokens, kv};
    auto const* next_page = resident_pages_.put(be_, pages_);
    for (auto const& span : request_spans_) {
      spans_.push_back({next_page, span.first, span.rows, 0, span.rows, nullptr});
      next_page += ceil_div(span.rows, page_tokens);
    }
    AttentionSpans const spans(resident_spans_.put(be_, spans_), AttentionSpans(std::span(std::as_const(spans_))));
    index_t const n = rows(), angles = static_cast<index_t>(model_.rope().size());
    cosine_.resize(static_cast<std::size_t>(n * angles)), sine_.resize(cosine_.size());
    rope_angles(std::span<double const>(model_.rope()), rope_magnitude(model_.config().rope),
                std::span<index_t const>(positions_), matrix_view(cosine_.data(), n, angles),
                matrix_view(sine_.data(), n, angles));
    chunk_ = {0, n, &plan_, spans};
    step_ = {&plan_,
             std::span<StepChunk<B> const>(&chunk_, 1),
             matrix_view<Space>(resident_cosine_.put(be_, cosine_), n, angles),
             matrix_view<Space>(resident_sine_.put(be_, sine_), n, angles),
             [](void const* kv_of_layer, index_t) { return *static_cast<KvView<Act> const*>(kv_of_layer); },
             &kv_};
  }

  // One of the batch before where the adapters are the same: on a device a state is memory of its own. What it knew of
  // a prompt is written anew before anybody reads it.
  std::unique_ptr<SequenceState<B>> state_of(std::shared_ptr<AdapterSet<B> const> const& adapters) {
    auto const known = std::find_if(idle_states_.begin(), idle_states_.end(),
                                    [&](auto const& state) { return state->adapters() == adapters; });
    if (known == idle_states_.end()) return std::make_unique<SequenceState<B>>(adapters, model_.sites());
    auto state = std::move(*known);
    idle_states_.erase(known);
    return state;
  }

  RowDropout dropout_of(std::vector<double> const& rates, std::vector<std::uint64_t> const& keys,
                        ResidentCopy<double, Space>& resident_rates,
                        ResidentCopy<std::uint64_t, Space>& resident_keys) {
    if (std::all_of(rates.begin(), rates.end(), [](double rate) { return rate <= 0; })) return {};
    return {resident_rates.put(be_, rates), resident_keys.put(be_, keys), true};
  }

  // Layer l on h, in place.
  void record(std::size_t l, View h) {
    auto& recorder = recorder_of(l);
    if (l > 0) recorder.take_size_of(recorder_of(l - 1));
    recorder.start(*gradients_);
    recorder.dropout = dropout_;
    recorder.set_stream(h);
    model_.layers()[l].forward(recorder, step_, h);
  }

  // f(first, h [rows, d], logits [rows, output width]) for every chunk of wanted rows.
  void each_head_chunk(std::span<index_t const> wanted, auto&& f) {
    index_t before = -1;
    for (index_t row : wanted) {
      expects(row > before && row < rows(), "graft: wanted row ", row, " is out of order or outside the batch of ",
              rows());
      before = row;
    }
    for (std::size_t first = 0; first < wanted.size(); first += static_cast<std::size_t>(options_.head_rows)) {
      auto const chunk =
          wanted.subspan(first, std::min(static_cast<std::size_t>(options_.head_rows), wanted.size() - first));
      head_.start(*gradients_);
      auto const h = head_.arena().template matrix<Act>(static_cast<index_t>(chunk.size()), width());
      head_requests_.clear(), head_spans_.clear(), head_rates_.clear(), head_keys_.clear(), head_rows_.clear();
      std::size_t k = 0;
      for (std::size_t q = 0; q < request_spans_.size(); ++q) {
        auto const begin = static_cast<index_t>(k), end = request_spans_[q].first + request_spans_[q].rows;
        for (; k < chunk.size() && chunk[k] < end; ++k) {
          head_rows_.push_back(static_cast<std::int32_t>(chunk[k]));
          head_rates_.push_back(rates_[static_cast<std::size_t>(chunk[k])]);
          head_keys_.push_back(keys_[static_cast<std::size_t>(chunk[k])]);
        }
        if (static_cast<index_t>(k) == begin) continue;
        head_requests_.push_back({states_[q].get(), static_cast<index_t>(k) - begin});
        head_spans_.push_back({begin, static_cast<index_t>(k) - begin, request_spans_[q].adapters});
      }
      head_index_ = resident_head_rows_.put(be_, head_rows_);
      gather_rows(be_, Weight{reinterpret_cast<std::byte const*>(hidden().data), format_of<Act>, rows(), width()},
                  head_index_, h);
      head_plan_.build(be_, head_requests_, PlanUse::training);
      head_.dropout = dropout_of(head_rates_, head_keys_, resident_head_rates_, resident_head_keys_);
      auto const logits = head_.arena().template matrix<Act>(h.rows, model_.ends().output_width());
      model_.ends().logits(head_, {nullptr, nullptr, nullptr, head_spans_, &head_plan_}, h, logits);
      f(static_cast<index_t>(first), h, logits);
    }
  }

  M& model_;
  B& be_;
  TrainingOptions options_;
  Gradients<B>* gradients_ = nullptr;
  index_t first_trained_ = 0;
  BasicArena<Space> gradient_memory_;
  Recorder<B> embedding_, head_, shared_;          ///< shared_: of layers that are run again
  std::vector<std::unique_ptr<Recorder<B>>> own_;  ///< [layers], null: run again
  View embedded_;
  Storage<Act, Space> hidden_, dh_;  ///< [n, d]: the residual stream and its gradient, in place through all layers
  std::vector<Storage<Act, Space>> inputs_;  ///< [layers] of [n, d]: what those that are run again start from

  Plan<B> plan_, head_plan_;
  std::vector<std::unique_ptr<SequenceState<B>>> states_, idle_states_;
  std::vector<RequestRows<B>> requests_, head_requests_;
  std::vector<RequestSpan<B>> request_spans_, head_spans_;
  std::vector<std::int32_t> tokens_, token_types_, position_rows_, pages_, head_rows_;
  ResidentCopy<std::int32_t, Space> resident_tokens_, resident_types_, resident_positions_, resident_pages_,
      resident_head_rows_;
  std::int32_t const* head_index_ = nullptr;  ///< of the head's rows in the batch
  std::vector<index_t> positions_;
  std::vector<double> rates_, head_rates_;
  std::vector<std::uint64_t> keys_, head_keys_;
  ResidentCopy<double, Space> resident_rates_, resident_head_rates_;
  ResidentCopy<std::uint64_t, Space> resident_keys_, resident_head_keys_;
  RowDropout dropout_;
  std::vector<AttentionSpan> spans_;
  ResidentCopy<AttentionSpan, Space> resident_spans_;
  Storage<Act, Space> kv_memory_;
  std::vector<Act> cosine_, sine_;
  ResidentCopy<Act, Space> resident_cosine_, resident_sine_;
  std::vector<Act*> page_data_;
  ResidentCopy<Act*, Space> resident_page_data_;
  KvView<Act> kv_;
  StepChunk<B> chunk_;
  Step<B> step_;
};

}  // namespace graft
