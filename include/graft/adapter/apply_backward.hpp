// SPDX-License-Identifier: Apache-2.0
// The way back through the calls of apply.hpp, for a trainer that owns its layers and buffers.
//
// clang-format off
//     plan.build(requests, PlanUse::training);
//     ...                                              // forward, as in apply.hpp, keeping x; also y = x_base W^T + b
//                                                      // from before apply_output where needs_pre_map(site, plan)
//     apply_output_backward(be, site, plan, x, y, dy, dx, gradients);            // dy becomes the gradient of that y
//     ...                                              // the trainer's own dx_base = dy W
//     apply_input_backward(be, site, plan, x_before, dx, dx_base, gradients);    // dx becomes the gradient of x_before
// clang-format on
//
// Gradients of modules in training are added to `gradients`; others are frozen and passed through. The calls run
// several grids one after the other: for executors that return when all is done, not for a SliceExecutor. Results do
// not depend on the number of threads, and a module's gradient not on the other modules of the batch.
#pragma once

#include <graft/adapter/apply.hpp>
#include <graft/adapter/gradients.hpp>

#include <algorithm>
#include <cassert>
#include <span>
#include <type_traits>
#include <vector>

namespace graft {

/// Whether some row has an output map at the site, so that the way back needs what the maps were applied to.
template <class B>
bool needs_pre_map(Site site, Plan<B> const& plan) {
  return plan.maps(Stage::output_inner, site.index).any() || plan.maps(Stage::output_outer, site.index).any();
}

namespace detail {

// A copy of z in the arena, in the type that gradients are computed in.
template <class B, class Z>
MatrixView<Real<B>, typename B::Space> real_copy(B& be, MatrixView<Z, typename B::Space> z) {
  auto const copied = be.arena().template matrix<Real<B>>(z.rows, z.cols);
  convert(be, MatrixView<std::remove_const_t<Z> const, typename B::Space>(z), copied);
  return copied;
}

template <class B>
inline constexpr bool on_host = std::same_as<typename B::Space, HostSpace>;

// One policy's map of a group of rows at a site and stage: I + sum w (M - I) over its members.
template <class B>
struct StageLink {
  RowMapRow<Real<B> const> map;
  std::span<typename AdapterSet<B>::Member const> members;
  bool generated = false;
};

// The policies' maps in the order they are applied, where kernels read them.
template <class B>
std::vector<StageLink<B>> stage_links(Stage stage, Site site, index_t layer, RowGroup<B> const& group,
                                      SequenceState<B> const& state) {
  auto const& set = *group.set;
  std::vector<StageLink<B>> links;
  for (auto const& policy : set.policy_maps) {
    if (policy.stage != stage) continue;
    auto const members = std::span(set.members).subspan(policy.first, policy.count);
    if (policy.sums.empty()) {
      if (Real<B> const* const diagonal = layer >= 0 ? state.diagonal(layer, site.index) : nullptr)
        links.push_back({{diagonal, nullptr, nullptr, site.out, 0, nullptr}, members, true});
    } else if (auto const s = static_cast<std::size_t>(site.index); !policy.sums[s].identity()) {
      links.push_back({on_host<B> ? policy.sums[s] : set.resident_maps.rows(policy.resident)[s], members, false});
    }
  }
  return links;
}

// From the gradient of a link's map to its members' parameters.
template <class B>
void link_backward(B& be, StageLink<B> const& link, Side side, Site site, index_t layer, std::size_t request,
                   SequenceState<B> const& state, index_t vectors, RowMapRow<Real<B>> const& grad,
                   Gradients<B>& gradients) {
  using R = Real<B>;
  if (link.generated) {
    auto const dl = gradients.vectors(be, request, vectors);
    state.for_each_part(layer, site.index, [&](index_t offset, index_t size, index_t from) {
      accumulate(be, R{1}, VectorView<R const, typename B::Space>{grad.c1 + offset, size}, dl.part(from, size));
    });
    return;
  }
  for (auto const& member : link.members) {
    auto const& table = member.module->maps[static_cast<std::size_t>(side)];
    if (!gradients.trains(*member.module) || table.empty() || table[static_cast<std::size_t>(site.index)].identity())
      continue;
    if constexpr (on_host<B>) {
      auto const scope = be.scope();
      auto const scaled = [&](R const* values) -> R const* {
        if (values == nullptr || member.weight == 1) return values;
        auto const v = be.arena().template vector<R>(grad.size);
        for (index_t j = 0; j < grad.size; ++j) v[j] = member.weight * values[j];
        return v.data;
      };
      RowMapRow<R const> const own{scaled(grad.c1), scaled(grad.d), scaled(grad.e), grad.size, grad.group, nullptr};
      auto const& back = member.module->back;
      back.map(be, member.module->module.get(), back.entries[static_cast<std::size_t>(site.index)], own,
               gradients.find(*member.module));
    } else {
      auto const own = gradients.find_published(be, *member.module)->map(side, site.index);
      auto const add = [&](R const* from, R* to) {  // what the member lacks is no number of it
        if (from != nullptr && to != nullptr)
          accumulate(be, member.weight, VectorView<R const, typename B::Space>{from, grad.size},
                     VectorView<R, typename B::Space>{to, grad.size});
      };
      add(grad.c1, own.c1), add(grad.d, own.d), add(grad.e, own.e);
    }
  }
}

// dy of the listed rows, the gradient of stage(z), becomes the gradient of z.
template <class B, class Z, class G>
void stage_backward(B& be, Stage stage, Site site, Plan<B> const& plan, RowGroup<B> const& group,
                    std::span<std::int32_t const> rows, MatrixView<Z, typename B::Space> z,
                    MatrixView<G, typename B::Space> dy, Gradients<B>& gradients) {
  using R = Real<B>;
  using Space = typename B::Space;
  if (rows.empty()) return;
  auto const scope = be.scope();
  Side const side = stage <= Stage::input_inner ? Side::input : Side::output;
  auto const& state = *plan.requests()[group.request].state;
  index_t const layer = group.set->generates() ? state.layer_of(site.index) : -1;
  auto const links = stage_links(stage, site, layer, group, state);
  if (links.empty()) return;

  // what each link was applied to: z, then the links before it applied to z
  std::vector<MatrixView<R, Space>> before(links.size());
  for (std::size_t k = 1; k < links.size(); ++k) {
    before[k] = be.arena().template matrix<R>(z.rows, z.cols);
    if (k == 1)
      convert(be, rows, MatrixView<std::remove_const_t<Z> const, Space>(z), before[k]);
    else
      convert(be, rows, MatrixView<R const, Space>(before[k - 1]), before[k]);
    apply_row_map(be, links[k - 1].map, rows, before[k]);
  }
  for (std::size_t k = links.size(); k-- > 0;) {
    auto const& link = links[k];
    auto const link_scope = be.scope();
    bool const wanted = link.generated || std::any_of(link.members.begin(), link.members.end(),
                                                      [&](auto const& m) { return gradients.trains(*m.module); });
    auto const back = [&](RowMapRow<R> const& grad) {
      if (k == 0)
        row_map_backward(be, link.map, rows, MatrixView<std::remove_const_t<Z> const, Space>(z), dy, grad);
      else
        row_map_backward(be, link.map, rows, MatrixView<R const, Space>(before[k]), dy, grad);
    };
    if constexpr (!on_host<B>)
      if (wanted && !link.generated && link.members.size() == 1 && link.members[0].weight == 1) {
        // the link is the one module's map, whose gradient is added to where it lies
        back(gradients.find_published(be, *link.members[0].module)->map(side, site.index));
        continue;
      }
    auto const zeros = [&](Numbers<R> const& present) {
      if (!wanted || present == nullptr) return static_cast<R*>(nullptr);
      auto const v = be.arena().template vector<R>(link.map.size);
      clear(be, v);
      return v.data;
    };
    RowMapRow<R> const grad{zeros(link.map.c1), zeros(link.map.d), zeros(link.map.e),
                            link.map.size,      link.map.group,    nullptr};
    back(grad);
    if (wanted) link_backward(be, link, side, site, layer, group.request, state, state.vectors(), grad, gradients);
  }
}

template <class B, class Z, class G>
void stage_backward(B& be, Stage stage, Site site, Plan<B> const& plan, MatrixView<Z, typename B::Space> z,
                    MatrixView<G, typename B::Space> dy, Gradients<B>& gradients) {
  for (auto const& group : plan.groups()) stage_backward(be, stage, site, plan, group, group.listed, z, dy, gradients);
}

// f(group, member, factors) for every delta of the batch at a site; factors are where kernels read them.
template <class B>
void for_each_delta(Site site, Plan<B> const& plan, auto&& f) {
  for (auto const& group : plan.groups())
    for (auto const& member : group.set->members) {
      if (member.module->factors.empty()) continue;
      if (auto const& factors = member.module->resident_factors.rows()[site.index]; factors.rank != 0)
        f(group, member, factors);
    }
}

// Gives f memory for dL/dA [r, i] and dL/dB^T [r, o], null for frozen members, and hands on what it adds there.
template <class B>
void factors_backward(B& be, Site site, typename AdapterSet<B>::Member const& member,
                      LowRankFactors<Real<B>> const& factors, Gradients<B>& gradients, auto&& f) {
  using R = Real<B>;
  if (!gradients.trains(*member.module)) return f(static_cast<R*>(nullptr), static_cast<R*>(nullptr));
  if constexpr (!on_host<B>) {
    auto const own = gradients.find_published(be, *member.module)->factors(site.index);
    return f(own.a, own.b_transposed);
  } else {
    auto const scope = be.scope();
    auto const da = be.arena().template matrix<R>(factors.rank, site.in);
    auto const db_transposed = be.arena().template matrix<R>(factors.rank, site.out);
    std::fill_n(da.data, da.size(), R{0});
    std::fill_n(db_transposed.data, db_transposed.size(), R{0});
    f(da.data, db_transposed.data);
    auto const db = be.arena().template matrix<R>(site.out, factors.rank);
    for (index_t r = 0; r < factors.rank; ++r)
      for (index_t o = 0; o < site.out; ++o) db(o, r) = db_transposed(r, o);
    auto const& back = member.module->back;
    back.factors(be, member.module->module.get(), back.entries[static_cast<std::size_t>(site.index)],
                 {da, db, factors.scale}, gradients.find(*member.module));
  }
}

// Of one member's generator, by the backend.
template <class B>
void member_backward(B& be, index_t layer, typename AdapterSet<B>::Member const& member,
                     VectorView<Real<B>, typename B::Space> dl,
                     MatrixView<typename B::Act const, typename B::Space> normalized,
                     MatrixView<typename B::Act const, typename B::Space> raw,
                     MatrixView<typename B::Act, typename B::Space> dnormalized,
                     MatrixView<typename B::Act, typename B::Space> draw, Gradients<B>& gradients) {
  auto const& module = *member.module;
  auto const& g = module.generators[static_cast<std::size_t>(layer)];
  auto const* const own = gradients.find_published(be, module);  // null: only what flows into the prompt's rows counts
  generator_backward(be, GeneratorTerm<Real<B>>{g.resident, member.weight, g.query, g.rotated_query},
                     own != nullptr ? own->generator(module, layer) : GeneratorGradient<Real<B>>{},
                     VectorView<Real<B> const, typename B::Space>(dl), normalized, raw, dnormalized, draw);
}

}  // namespace detail

/// x [n, i] is what apply_output saw; y [n, o] what it was applied to (x_base W^T + b), of no meaning unless
/// needs_pre_map. dy [n, o]: in, the gradient of what apply_output left; out, the gradient of y. dx [n, i] is added to.
template <class B, class X, class Y, class G, class D>
void apply_output_backward(B& be, Site site, Plan<B> const& plan, MatrixView<X, typename B::Space> x,
                           MatrixView<Y, typename B::Space> y, MatrixView<G, typename B::Space> dy,
                           MatrixView<D, typename B::Space> dx, Gradients<B>& gradients) {
  using R = Real<B>;
  using Space = typename B::Space;
  assert(dy.rows == plan.rows() && dy.cols == site.out && x.rows == plan.rows() && x.cols == site.in);
  auto const inner = plan.maps(Stage::output_inner, site.index), outer = plan.maps(Stage::output_outer, site.index);
  auto const deltas = plan.low_rank(site.index);
  if (outer.any()) {
    auto const scope = be.scope();
    if (inner.any() || deltas.any()) {  // what the outer maps were applied to
      auto const z = detail::real_copy(be, y);
      if (inner.any()) apply_row_map(be, inner, z);
      if (deltas.any()) apply_low_rank(be, deltas, MatrixView<std::remove_const_t<X> const, Space>(x), z);
      detail::stage_backward(be, Stage::output_outer, site, plan, z, dy, gradients);
    } else {
      detail::stage_backward(be, Stage::output_outer, site, plan, y, dy, gradients);
    }
  }
  detail::for_each_delta(site, plan, [&](auto const& group, auto const& member, auto const& factors) {
    detail::factors_backward(be, site, member, factors, gradients, [&](R* da, R* db_transposed) {
      low_rank_backward(be, factors, member.weight, group.listed, MatrixView<std::remove_const_t<X> const, Space>(x),
                        MatrixView<G const, Space>(dy), dx, da, db_transposed);
    });
  });
  if (inner.any()) detail::stage_backward(be, Stage::output_inner, site, plan, y, dy, gradients);
}

/// x [n, i] is what apply_input was given. dx [n, i]: in, the gradient of what low-rank deltas saw; out, the gradient
/// of x. dx_base [n, i]: in, the gradient of what the weight was multiplied with; out, scratch.
template <class B, class X, class D>
void apply_input_backward(B& be, Site site, Plan<B> const& plan, MatrixView<X, typename B::Space> x,
                          MatrixView<D, typename B::Space> dx, MatrixView<D, typename B::Space> dx_base,
                          Gradients<B>& gradients) {
  assert(x.rows == plan.rows() && x.cols == site.in && dx.data != dx_base.data);
  auto const outer = plan.maps(Stage::input_outer, site.index), inner = plan.maps(Stage::input_inner, site.index);
  if (inner.any()) {
    auto const scope = be.scope();
    if (outer.any()) {
      auto const z = detail::real_copy(be, x);
      apply_row_map(be, outer, z);
      detail::stage_backward(be, Stage::input_inner, site, plan, z, dx_base, gradients);
    } else {
      detail::stage_backward(be, Stage::input_inner, site, plan, x, dx_base, gradients);
    }
  }
  accumulate(be, Real<B>{1}, MatrixView<D const, typename B::Space>(dx_base), dx);
  if (outer.any()) detail::stage_backward(be, Stage::input_outer, site, plan, x, dx, gradients);
}

/// After the layer's query, value and up sites. normalized, raw [n, d] as observe_prompt was given them; dnormalized
/// and draw [n, d] are added to.
template <class B>
void observe_prompt_backward(B& be, index_t layer, Plan<B> const& plan,
                             MatrixView<typename B::Act const, typename B::Space> normalized,
                             MatrixView<typename B::Act const, typename B::Space> raw,
                             MatrixView<typename B::Act, typename B::Space> dnormalized,
                             MatrixView<typename B::Act, typename B::Space> draw, Gradients<B>& gradients) {
  using R = Real<B>;
  for (auto const& group : plan.groups()) {
    if (!group.set->generates()) continue;
    auto const& request = plan.requests()[group.request];
    if (request.prompt_rows == 0) continue;
    auto const dl = gradients.vectors(be, group.request, request.state->vectors());
    index_t const first = plan.first_row(group.request), p = request.prompt_rows;
    for (auto const& member : group.set->generating) {
      auto const& g = member.module->generators[static_cast<std::size_t>(layer)];
      if (!g.present()) continue;
      auto const scope = be.scope();
      auto const& back = member.module->back;
      expects(back.generates, "graft: adapter ", member.module->name,
              " makes vectors from the prompt, but its policy has no backward");
      if constexpr (!detail::on_host<B>) {
        detail::member_backward(be, layer, member, dl, normalized.row_range(first, p), raw.row_range(first, p),
                                dnormalized.row_range(first, p), draw.row_range(first, p), gradients);
      } else {
        auto const own = be.arena().template vector<R>(g.vectors);
        for (index_t j = 0; j < g.vectors; ++j)
          own[j] = member.weight * dl[j < g.query && g.rotated_query ? g.vectors + j : j];
        void const* const module = member.module->module.get();
        index_t const entry = back.entries[static_cast<std::size_t>(g.site)];
        auto const scratch = be.arena().template vector<R>(back.generator_scratch(module, entry, p));
        R* into = gradients.find(*member.module);
        if (into == nullptr) {  // frozen: only what flows into the prompt's rows counts
          into = be.arena().template vector<R>(back.count).data;
          std::fill_n(into, back.count, R{0});
        }
        back.generator(be, module, entry, normalized.row_range(first, p), raw.row_range(first, p), scratch, own, into,
                       dnormalized.row_range(first, p), draw.row_range(first, p));
      }
    }
    clear(be, dl);
  }
}

/// h [n, d] is what apply_block_output was given; dh [n, d], in place.
template <class B, class H, class G>
void apply_block_output_backward(B& be, Site site, Plan<B> const& plan, MatrixView<H, typename B::Space> h,
                                 MatrixView<G, typename B::Space> dh, Gradients<B>& gradients) {
  auto const inner = plan.positioned_maps(Stage::output_inner, site.index);
  auto const outer = plan.positioned_maps(Stage::output_outer, site.index);
  auto const scope = be.scope();
  auto const back = [&](Stage stage, auto const& z) {
    for (auto const& group : plan.groups())
      detail::stage_backward(be, stage, site, plan, group, group.listed_positioned, z, dh, gradients);
  };
  if (outer.any() && inner.any()) {
    auto const z = detail::real_copy(be, h);
    apply_row_map(be, inner, z);
    back(Stage::output_outer, z);
  } else if (outer.any()) {
    back(Stage::output_outer, h);
  }
  if (inner.any()) back(Stage::output_inner, h);
}

/// q [n, q] is what apply_rotated was given; dq [n, q], in place.
template <class B, class H, class G>
void apply_rotated_backward(B& be, Site site, Plan<B> const& plan, MatrixView<H, typename B::Space> q,
                            MatrixView<G, typename B::Space> dq, Gradients<B>& gradients) {
  for (Stage stage : {Stage::output_outer, Stage::output_inner})  // the one stage that vectors act in
    if (plan.maps(stage, site.index).any()) detail::stage_backward(be, stage, site, plan, q, dq, gradients);
}

/// Of low-rank deltas on an embedding: dy [n, o] is the gradient of its rows.
template <class B>
void apply_embedding_backward(B& be, Site site, Plan<B> const& plan, std::int32_t const* tokens,
                              MatrixView<typename B::Act const, typename B::Space> dy, Gradients<B>& gradients) {
  detail::for_each_delta(site, plan, [&](auto const& group, auto const& member, auto const& factors) {
    detail::factors_backward(be, site, member, factors, gradients, [&](auto* da, auto* db_transposed) {
      if (da != nullptr)
        low_rank_embedding_backward(be, factors, member.weight, group.listed, tokens, site.in, dy, da, db_transposed);
    });
  });
}

}  // namespace graft
