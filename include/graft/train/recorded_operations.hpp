// SPDX-License-Identifier: Apache-2.0
// The operations of a backend as a Recorder offers them: each runs at once and notes its way back.
#pragma once

#include <graft/adapter/apply_backward.hpp>
#include <graft/arch/ends.hpp>
#include <graft/layer/linear.hpp>
#include <graft/train/recorder.hpp>

#include <array>
#include <cstdint>
#include <functional>

namespace graft {

template <class B>
using RecordedView = typename Recorder<B>::View;
template <class B>
using RecordedConstView = typename Recorder<B>::ConstView;
template <class B>
using RecordedVector = VectorView<Real<B> const, typename B::Space>;

// Norms and element-wise operations.

template <class B>
void rms_norm(Recorder<B>& be, RecordedConstView<B> x, RecordedVector<B> weight, double eps, RecordedView<B> y) {
  auto const kept = be.keep(x);  // x is the residual stream, or y itself
  if (x.data == y.data) be.changes(y);
  rms_norm(be.backend(), x, weight, eps, y);
  be.on_way_back([&be, x, kept, weight, eps, y] {
    rms_norm_backward(be.backend(), kept, weight, eps, RecordedConstView<B>(be.gradient(y)), be.gradient(x),
                      be.tensor_gradient(weight.data));
  });
}

template <class B>
void layer_norm(Recorder<B>& be, RecordedConstView<B> x, RecordedVector<B> weight, RecordedVector<B> bias, double eps,
                RecordedView<B> y) {
  auto const kept = be.keep(x);
  if (x.data == y.data) be.changes(y);
  layer_norm(be.backend(), x, weight, bias, eps, y);
  be.on_way_back([&be, x, kept, weight, bias, eps, y] {
    layer_norm_backward(be.backend(), kept, weight, eps, RecordedConstView<B>(be.gradient(y)), be.gradient(x),
                        be.tensor_gradient(weight.data), be.tensor_gradient(bias.data));
  });
}

template <class B>
void rms_norm_heads(Recorder<B>& be, RecordedView<B> x, RecordedVector<B> weight, double eps) {
  auto const kept = be.keep(x);
  be.changes(x);
  rms_norm_heads(be.backend(), x, weight, eps);
  be.on_way_back([&be, x, kept, weight, eps] {
    rms_norm_heads_backward(be.backend(), kept, weight, eps, be.gradient(x), be.tensor_gradient(weight.data));
  });
}

template <class B>
void activate(Recorder<B>& be, Activation f, RecordedView<B> x) {
  auto const kept = be.keep(x);
  be.changes(x);
  activate(be.backend(), f, x);
  be.on_way_back([&be, f, x, kept] { activate_backward(be.backend(), f, kept, be.gradient(x)); });
}

template <class B>
void activate_gated(Recorder<B>& be, Activation f, RecordedView<B> gate, RecordedConstView<B> up) {
  auto const kept = be.keep(gate);
  auto const kept_up = be.unchanged(up);
  be.changes(gate);
  activate_gated(be.backend(), f, gate, up);
  be.on_way_back([&be, f, gate, kept, up, kept_up] {
    activate_gated_backward(be.backend(), f, kept, kept_up.view(be), be.gradient(gate), be.gradient(up));
  });
}

template <class B>
void rotate(Recorder<B>& be, RecordedConstView<B> cosine, RecordedConstView<B> sine, index_t head_dim,
            RecordedView<B> x) {
  be.changes(x);
  rotate(be.backend(), cosine, sine, head_dim, x);
  be.on_way_back(
      [&be, cosine, sine, head_dim, x] { rotate_backward(be.backend(), cosine, sine, head_dim, be.gradient(x)); });
}

template <class B>
void add(Recorder<B>& be, RecordedConstView<B> x, RecordedView<B> h) {
  be.changes(h);
  add(be.backend(), x, h);
  be.on_way_back([&be, x, h] { add(be.backend(), RecordedConstView<B>(be.gradient(h)), be.gradient(x)); });
}

template <class B>
void copy(Recorder<B>& be, RecordedConstView<B> from, RecordedView<B> to) {
  copy(be.backend(), from, to);
  be.on_way_back([&be, from, to] { add(be.backend(), RecordedConstView<B>(be.gradient(to)), be.gradient(from)); });
}

// Attention over the sequences of the batch, each from its first token on.

template <class B>
void store_kv(Recorder<B>& be, KvView<typename B::Act> const& kv, AttentionSpans const& spans, RecordedConstView<B> k,
              RecordedConstView<B> v) {
  be.keys = k, be.values = v;
  store_kv(be.backend(), kv, spans, k, v);
}

template <class B>
void attention(Recorder<B>& be, KvView<typename B::Act> const& kv, AttentionShape const& shape,
               AttentionSpans const& spans, RecordedConstView<B> q, RecordedView<B> out) {
  attention(be.backend(), kv, shape, spans, q, out);
  be.on_way_back([&be, shape, spans, q, out, k = be.keys, v = be.values, kept_q = be.unchanged(q),
                  kept_k = be.unchanged(be.keys), kept_v = be.unchanged(be.values), kept_out = be.unchanged(out)] {
    attention_backward(be.backend(), shape, spans, kept_q.view(be), kept_k.view(be), kept_v.view(be), kept_out.view(be),
                       RecordedConstView<B>(be.gradient(out)), be.gradient(q), be.gradient(k), be.gradient(v));
  });
}

// Dropout.

/// x[n, j] is zeroed with its row's rate, else divided by 1 - rate. The same mask for a value and its gradient.
template <class B>
void drop(Recorder<B>& be, Site site, RecordedView<B> x) {
  drop(be.backend(), be.dropout.rates, be.dropout.keys, site.index, x);
}

// Products and what adapters do to them.

template <class B>
void product(Recorder<B>& be, RecordedConstView<B> x, Weight const& w, RecordedVector<B> bias, RecordedView<B> y) {
  product(be.backend(), x, w, bias, y);
  std::function<RecordedConstView<B>()> kept;  // only the gradient of W reads x
  if (be.gradients().tensors_wanted()) kept = be.input(x);
  be.on_way_back([&be, x, kept, w, bias, y] {
    RecordedConstView<B> const dy = be.gradient(y);
    if (auto const dw = be.tensor_gradient(w.data); !dw.empty()) {
      expects(w.row_order == nullptr, "graft: the gradient of a weight with permuted rows is not available");
      weight_gradient(be.backend(), dy, kept(), matrix_view<typename B::Space>(dw.data, w.rows, w.cols));
    }
    if (auto const db = be.tensor_gradient(bias.data); !db.empty()) bias_gradient(be.backend(), dy, db);
    product_transposed(be.backend(), dy, w, be.gradient(x));
  });
}

/// Copies of x, behind input maps and dropout, for the deltas and the weight.
template <class B>
AdaptedInput<B> adapted_input(Recorder<B>& be, Site site, Plan<B> const& plan, RecordedConstView<B> x) {
  bool const deltas = plan.low_rank(site.index).any(), maps = has_input_maps(site, plan);
  bool const drops = deltas && be.dropout.any;
  if (!maps && !drops) return {x, x};
  auto const copy_of = [&](RecordedConstView<B> from) {
    auto const to = be.arena().template matrix<typename B::Act>(x.rows, x.cols);
    copy(be.backend(), from, to);
    return to;
  };
  auto const delta = copy_of(x);
  if (!maps) {  // the weight sees x itself
    drop(be, site, delta);
    be.on_way_back([&be, site, x, delta] {
      drop(be, site, be.gradient(delta));
      add(be.backend(), RecordedConstView<B>(be.gradient(delta)), be.gradient(x));
    });
    return {delta, x};
  }
  auto const base = copy_of(x);
  apply_input(be.backend(), site, plan, delta, base);
  if (drops) drop(be, site, delta);
  be.on_way_back([&be, site, &plan, x, delta, base, drops, kept = be.input(x)] {
    auto const dx = be.gradient(delta);
    if (drops) drop(be, site, dx);
    apply_input_backward(be.backend(), site, plan, kept(), dx, be.gradient(base), be.gradients());
    add(be.backend(), RecordedConstView<B>(dx), be.gradient(x));
  });
  return {delta, base};
}

template <class B>
void apply_output(Recorder<B>& be, Site site, Plan<B> const& plan, RecordedConstView<B> x, RecordedView<B> y) {
  bool const maps = needs_pre_map(site, plan), deltas = plan.low_rank(site.index).any();
  if (!maps && !deltas) return;
  auto const kept_x = deltas ? be.input(x) : std::function<RecordedConstView<B>()>([x] { return x; });
  auto const kept_y = maps ? be.keep(y) : RecordedConstView<B>(y);
  be.changes(y);
  apply_output(be.backend(), site, plan, x, y);
  be.on_way_back([&be, site, &plan, x, kept_x, kept_y, y, deltas] {
    auto const dx = deltas ? be.gradient(x) : RecordedView<B>{nullptr, x.rows, x.cols, x.cols};
    apply_output_backward(be.backend(), site, plan, kept_x(), kept_y, be.gradient(y), dx, be.gradients());
  });
}

template <class B>
void linear(Recorder<B>& be, Linear<B> const& layer, Plan<B> const& plan, RecordedConstView<B> x, RecordedView<B> y) {
  auto const input = adapted_input(be, layer.site, plan, x);
  product(be, input.base, layer.weight, layer.bias, y);
  apply_output(be, layer.site, plan, input.delta, y);
}

/// Nothing waits: the way back of a map follows that of its product.
template <class B>
Unmapped<Recorder<B>> linear_unmapped(Recorder<B>& be, Linear<B> const& layer, Plan<B> const& plan,
                                      RecordedConstView<B> x) {
  auto const y = be.arena().template matrix<typename B::Act>(x.rows, layer.site.out);
  linear(be, layer, plan, x, y);
  return {y, {}};
}
template <class B, std::size_t N>
std::array<Unmapped<Recorder<B>>, N> linear_unmapped(Recorder<B>& be, std::array<Linear<B> const*, N> const& layers,
                                                     Plan<B> const& plan, RecordedConstView<B> x) {
  std::array<Unmapped<Recorder<B>>, N> y;
  for (std::size_t k = 0; k < N; ++k) y[k] = linear_unmapped(be, *layers[k], plan, x);
  return y;
}
template <class B>
RecordedView<B> mapped(Recorder<B>&, Unmapped<Recorder<B>> const& x) {
  return x.x;
}

namespace detail {

// forward() changes y by the site's output maps; backward(kept y, dy) takes dy, in place, to the gradient of what y
// was.
template <class B>
void mapped_in_place(Recorder<B>& be, Site site, Plan<B> const& plan, RecordedView<B> y, auto&& forward,
                     auto&& backward) {
  if (!needs_pre_map(site, plan)) return;
  auto const kept = be.keep(y);
  be.changes(y);
  forward();
  be.on_way_back([&be, y, kept, backward] { backward(kept, be.gradient(y)); });
}

}  // namespace detail

template <class B>
void apply_block_output(Recorder<B>& be, Site site, Plan<B> const& plan, RecordedView<B> h) {
  detail::mapped_in_place(
      be, site, plan, h, [&] { apply_block_output(be.backend(), site, plan, h); },
      [&be, site, &plan](RecordedConstView<B> kept, RecordedView<B> dh) {
        apply_block_output_backward(be.backend(), site, plan, kept, dh, be.gradients());
      });
}

/// The maps of this step's prompts are made by now.
template <class B>
void apply_rotated(Recorder<B>& be, Site site, Plan<B> const& plan, RecordedView<B> q) {
  if (site.index < 0) return;
  detail::mapped_in_place(
      be, site, plan, q, [&] { apply_rotated(be.backend(), site, plan, q); },
      [&be, site, &plan](RecordedConstView<B> kept, RecordedView<B> dq) {
        apply_rotated_backward(be.backend(), site, plan, kept, dq, be.gradients());
      });
}

template <class B>
void observe_prompt(Recorder<B>& be, index_t layer, Plan<B> const& plan, RecordedConstView<B> normalized,
                    RecordedConstView<B> raw) {
  observe_prompt(be.backend(), layer, plan, normalized, raw);
  bool generates = false;
  for (auto const& group : plan.groups()) generates = generates || group.set->generates();
  if (!generates) return;
  be.on_way_back(
      [&be, layer, &plan, normalized, raw, kept_normalized = be.input(normalized), kept_raw = be.input(raw)] {
        observe_prompt_backward(be.backend(), layer, plan, kept_normalized(), kept_raw(), be.gradient(normalized),
                                be.gradient(raw), be.gradients());
      });
}

// The ends of a model.

template <class B>
void gather_rows(Recorder<B>& be, Weight const& table, std::int32_t const* index, RecordedView<B> h,
                 bool accumulate = false) {
  if (accumulate) be.changes(h);
  gather_rows(be.backend(), table, index, h, accumulate);
  be.on_way_back([&be, table, index, h, accumulate] {
    auto const dh = be.gradient(h);
    if (auto const d = be.tensor_gradient(table.data); !d.empty())
      gather_rows_backward(be.backend(), index, RecordedConstView<B>(dh),
                           matrix_view<typename B::Space>(d.data, table.rows, table.cols));
    if (!accumulate) clear(be.backend(), dh);  // what was in h before is gone
  });
}

template <class B>
void apply_embedding(Recorder<B>& be, Site site, Plan<B> const& plan, std::int32_t const* tokens, RecordedView<B> h) {
  if (!plan.low_rank(site.index).any()) return;
  be.changes(h);
  apply_embedding(be.backend(), site, plan, tokens, h);
  be.on_way_back([&be, site, &plan, tokens, h] {
    apply_embedding_backward(be.backend(), site, plan, tokens, RecordedConstView<B>(be.gradient(h)), be.gradients());
  });
}

template <class B>
VectorView<Real<B> const, typename B::Space> replaced_vector(Recorder<B>& be, Replacement<B> const& own) {
  be.alias(own.vector.data,
           own.weight.data);  // gradients go to the module's own values, whatever the backend's numbers
  return own.vector;
}

}  // namespace graft
