// SPDX-License-Identifier: Apache-2.0
// A small engine of somebody else: it owns sites, weights and buffers, runs requests in one batch through graft's
// host-engine calls, and knows what the result is by definition.
#pragma once

#include <graft/adapter/apply.hpp>
#include <graft/backend/cpu/maps_and_deltas.hpp>
#include <graft/backend/cpu/product.hpp>
#include <graft/testing/buffer.hpp>
#include <tests/adapter/definition.hpp>

#include <deque>
#include <string>
#include <vector>

namespace graft_test {

using graft::testing::Buffer;

/// Two decoder layers: separate q, k, v, or GPT-2's fused c_attn of [q | k | v]. Widths are no multiple of a register.
enum class Shape { separate, fused };
constexpr index_t width = 60, kv = 36, ffn = 108, layer_count = 2;

inline SiteTable make_sites(Shape shape) {
  SiteTable table;
  for (index_t l = 0; l < layer_count; ++l) {
    std::string const layer = text("layers.", l);
    LayerSites at;
    if (shape == Shape::separate) {
      Site const q = table.add_linear(l, "q_proj", layer + ".q_proj", width, width);
      table.add_linear(l, "k_proj", layer + ".k_proj", width, kv);
      Site const v = table.add_linear(l, "v_proj", layer + ".v_proj", width, kv);
      at.query = {q.index, 0, width}, at.value = {v.index, 0, kv};
    } else {
      Site const c = table.add_linear(l, "c_attn", layer + ".c_attn", width, width + 2 * kv);
      at.query = {c.index, 0, width}, at.value = {c.index, width + kv, kv};
    }
    Site const up = table.add_linear(l, "up_proj", layer + ".up_proj", width, ffn);
    table.add_linear(l, "down_proj", layer + ".down_proj", ffn, width);
    at.up = {up.index, 0, ffn};
    Site const rotated = table.add({l, "rotated_q", layer + ".q_proj", width, width, SiteKind::rotated_q});
    at.rotated_query = {rotated.index, 0, width};
    Site const block = table.add({l, "block_out", layer, width, width, SiteKind::hidden});
    at.block = block.index;
    table.add_layer(at);
  }
  return table;
}
inline std::vector<index_t> sites_of_kind(SiteTable const& table, SiteKind kind) {
  std::vector<index_t> result;
  for (index_t s = 0; s < table.size(); ++s)
    if (table[s].kind == kind) result.push_back(s);
  return result;
}

/// A request and what the engine's own layers would feed into each site and layer for it.
template <class T>
struct Request {
  std::vector<AdapterUse> uses;
  index_t rows = 1, prompt_rows = 0;
  std::deque<Buffer<T>> inputs;           ///< [sites] of [rows, in]; [rows, out] where there is no product
  std::deque<Buffer<T>> normalized, raw;  ///< [layers] of [rows, width]
};
template <class T>
using Outputs = std::deque<Buffer<T>>;  ///< [sites] of [rows, out]

template <class List, class Act = float>
class Engine {
 public:
  using B = CpuBackend<Act>;

  Engine(Shape shape, std::uint64_t seed, AdapterStorage storage = AdapterStorage::full)
      : bank(make_sites(shape), storage), definition(bank.sites()), random(seed) {
    for (auto const& site : bank.sites().all()) {
      weights_.emplace_back(site.out, site.in);
      biases_.emplace_back(1, site.out);
      if (site.kind != SiteKind::linear) continue;
      testing::fill_normal(weights_.back().view(), random, 0, 0.15);
      testing::fill_normal(biases_.back().view(), random, 0, 0.5);
    }
  }

  /// Loads a module with random parameters at the given sites and notes its definition.
  template <class P>
  void load(std::string name, P const& policy, std::vector<index_t> const& at) {
    auto module = make_module<P, B>(std::move(name), policy, bank.sites(), at);
    for (auto& entry : module.entries) {
      if constexpr (std::derived_from<P, RoAdRotation>) {
        testing::fill_normal(entry.state.theta, random, 0, 0.5);
        testing::fill_normal(entry.state.alpha, random, 1, 0.3);
      } else if constexpr (std::same_as<P, IA3Scaling>) {
        testing::fill_normal(entry.state.l, random, 1, 0.4);
      } else {
        entry.state.for_each([&](char const* name_of, auto& tensor) {
          bool const rational =
              std::string_view(name_of).starts_with("pedro_num") || std::string_view(name_of).starts_with("pedro_den");
          if (!rational) testing::fill_normal(tensor, random, 0, 0.2);  // rationals keep their start
        });
      }
    }
    definition.add(module);
    bank.load(backend, std::move(module));
  }

  template <class T = Act>
  Request<T> request(std::vector<AdapterUse> uses, index_t rows, index_t prompt_rows = 0) {
    Request<T> result{std::move(uses), rows, prompt_rows, {}, {}, {}};
    for (auto const& site : bank.sites().all())
      testing::fill_normal(result.inputs.emplace_back(rows, site.in).view(), random);
    for (index_t l = 0; l < layer_count; ++l) {
      testing::fill_normal(result.normalized.emplace_back(rows, width).view(), random);
      testing::fill_normal(result.raw.emplace_back(rows, width).view(), random);
    }
    return result;
  }

  /// All requests as one batch, each with a fresh state; per request what left every site. Every call is made once by
  /// each of the backends: one as a rule, or slices of a foreign pool, which waits between calls.
  template <class T>
  std::vector<Outputs<T>> run(std::vector<B*> const& backends, std::vector<Request<T> const*> const& requests) {
    std::deque<SequenceState<B>> states;
    std::vector<RequestRows<B>> rows;
    for (auto const* request : requests) {
      states.emplace_back(bank.resolve(request->uses), bank.sites());
      rows.push_back({&states.back(), request->rows, request->prompt_rows});
    }
    Plan<B> plan;
    plan.build(rows);
    std::vector<Outputs<T>> result(requests.size());
    for (index_t l = 0; l < layer_count; ++l) {
      Buffer<Act> const normalized = gather<Act>(
          requests, [&](auto const& r) -> auto& { return at(r.normalized, l); });
      Buffer<Act> const raw = gather<Act>(
          requests, [&](auto const& r) -> auto& { return at(r.raw, l); });
      for (B* be : backends) observe_prompt(*be, l, plan, normalized.view(), raw.view());
    }
    for (index_t s = 0; s < bank.sites().size(); ++s) {
      Buffer<T> x = gather<T>(
          requests, [&](auto const& r) -> auto& { return at(r.inputs, s); });
      Buffer<T> const y = at_site(backends, plan, s, x);
      index_t first = 0;
      for (std::size_t q = 0; q < requests.size(); ++q) {
        Buffer<T>& out = result[q].emplace_back(requests[q]->rows, y.view().cols);
        for (index_t n = 0; n < requests[q]->rows; ++n) std::copy_n(y.row(first + n), y.view().cols, out.row(n));
        first += requests[q]->rows;
      }
    }
    return result;
  }

  /// What leaves a site for a request by definition, in double.
  template <class T>
  Matrix expected(Request<T> const& request, index_t s) const {
    SiteInfo const& site = bank.sites()[s];
    bool const product = site.kind == SiteKind::linear;
    testing::Layer const base =
        product ? testing::linear(Matrix(at(weights_, s).view()), Matrix(at(biases_, s).view()).row(0))
                : testing::linear(testing::identity(site.out), {});
    std::vector<Prompt> prompts;
    for (index_t l = 0; l < layer_count && request.prompt_rows > 0; ++l)
      prompts.push_back({Matrix(at(request.normalized, l).view().row_range(0, request.prompt_rows)),
                         Matrix(at(request.raw, l).view().row_range(0, request.prompt_rows))});
    auto const layer = definition(base, s, request.uses, prompts);
    Matrix const x(at(request.inputs, s).view());
    Matrix result(request.rows, site.out);
    for (index_t n = 0; n < request.rows; ++n) {
      Vector const y = layer(x.row(n));
      std::copy(y.begin(), y.end(), result.view().row(n));
    }
    return result;
  }

  Bank<List, B> bank;
  Definition<List, B> definition;
  Random random;
  B backend;

 private:
  template <class C>
  static auto& at(C& container, index_t k) {
    return container[static_cast<std::size_t>(k)];
  }

  template <class To, class T>
  static Buffer<To> gather(std::vector<Request<T> const*> const& requests, auto&& part) {
    index_t rows = 0;
    for (auto const* request : requests) rows += request->rows;
    Buffer<To> result(rows, part(*requests[0]).view().cols, 3);
    index_t next = 0;
    for (auto const* request : requests) {
      auto const& from = part(*request);
      for (index_t n = 0; n < request->rows; ++n, ++next)
        for (index_t k = 0; k < from.view().cols; ++k) {
          if constexpr (std::same_as<To, T>)
            result.row(next)[k] = from.row(n)[k];
          else
            result.row(next)[k] = static_cast<To>(from.row(n)[k]);
        }
    }
    return result;
  }

  // The engine's own step at a site, with graft's calls around it.
  template <class T>
  Buffer<T> at_site(std::vector<B*> const& backends, Plan<B> const& plan, index_t s, Buffer<T>& x) {
    SiteInfo const& info = bank.sites()[s];
    Site const site{s, info.in, info.out};
    if (info.kind == SiteKind::hidden) {
      for (B* be : backends) apply_block_output(*be, site, plan, x.view());
      return x;
    }
    if (info.kind == SiteKind::rotated_q) {
      for (B* be : backends) apply_rotated(*be, site, plan, x.view());
      return x;
    }
    Buffer<T> base = x, y(plan.rows(), info.out, 2);
    for (B* be : backends) apply_input(*be, site, plan, x.view(), base.view());
    multiply(backends, s, base, y);
    for (B* be : backends) apply_output(*be, site, plan, x.view(), y.view());
    return y;
  }

  // y = x W^T + b; in an engine of 16-bit buffers as well
  template <class T>
  void multiply(std::vector<B*> const& backends, index_t s, Buffer<T> const& x, Buffer<T>& y) {
    auto const& w = at(weights_, s);
    Weight weight{reinterpret_cast<std::byte const*>(w.row(0)), std::same_as<Act, double> ? Format::f64 : Format::f32,
                  w.view().rows, w.view().cols, nullptr};
    VectorView<Act const> const bias{at(biases_, s).row(0), w.view().rows};
    if constexpr (std::same_as<T, Act>) {
      for (B* be : backends) product(*be, x.view(), weight, bias, y.view());
    } else {
      Buffer<Act> wide(x.view().rows, x.view().cols), out(y.view().rows, y.view().cols);
      for (index_t n = 0; n < x.view().rows; ++n)
        for (index_t k = 0; k < x.view().cols; ++k) wide.row(n)[k] = static_cast<Act>(x.row(n)[k]);
      for (B* be : backends) product(*be, std::as_const(wide).view(), weight, bias, out.view());
      for (index_t n = 0; n < y.view().rows; ++n)
        for (index_t k = 0; k < y.view().cols; ++k) y.row(n)[k] = static_cast<T>(out.row(n)[k]);
    }
  }

  std::deque<Buffer<Act>> weights_, biases_;
};

}  // namespace graft_test
