// SPDX-License-Identifier: Apache-2.0
// Where gradients are added up while a way back runs. On the host that is a module's own buffer, parameter by
// parameter. On a device it is what was published there: coefficients of maps, factors, and generators. Policies turn
// these into gradients of parameters, which are linear in them, once per step on the host.
#pragma once

#include <graft/adapter/adapter_set.hpp>
#include <graft/core/memory.hpp>

#include <array>
#include <concepts>
#include <utility>
#include <vector>

namespace graft {

/// Gradients in host memory, and in B::Space where that is another: their sum counts.
template <class B>
class GradientBuffer {
 public:
  using R = Real<B>;
  using Space = typename B::Space;
  static constexpr bool on_host = std::same_as<Space, HostSpace>;

  /// `size` zeros. A device is not touched before somebody adds there.
  void start(index_t size) {
    size_ = size;
    if constexpr (on_host) {
      host_.assign(static_cast<std::size_t>(size), R{0});
    } else {
      host_.clear();
      resident_.make_room(size);
      cleared_ = false;
    }
  }
  index_t size() const { return size_; }
  /// Zeros on the host where nothing was fetched.
  VectorView<R> host() {
    host_.resize(static_cast<std::size_t>(size_), R{0});
    return {host_.data(), size_};
  }
  /// Where `be` adds, in the order of its queue.
  VectorView<R, Space> view(B& be) {
    if constexpr (on_host) {
      return host();
    } else {
      VectorView<R, Space> const values{resident_.data(), size_};
      if (!std::exchange(cleared_, true)) clear(be, values);
      return values;
    }
  }
  /// Where that is; nothing is read or written.
  R* data() {
    if constexpr (on_host)
      return host().data;
    else
      return resident_.data();
  }
  /// Moves what is in B::Space to the host, added to what is there; waits.
  void fetch(B& be) requires(!on_host) {
    auto const to = host();
    if (!cleared_) return;
    std::vector<R> added(host_.size());
    copy_to_host(be, static_cast<R const*>(resident_.data()), added.data(), size_);
    for (std::size_t k = 0; k < added.size(); ++k) to.data[k] += added[k];
    cleared_ = false;
  }
  /// All of it in B::Space. Waits where some of it is on the host.
  VectorView<R, Space> gathered(B& be) {
    if constexpr (!on_host)
      if (!host_.empty()) {
        fetch(be);
        copy_to_device(be, static_cast<R const*>(host_.data()), resident_.data(), size_);
        cleared_ = true;
        host_.clear();
      }
    return view(be);
  }
  /// Zeros on the host alone, which has made something else of what was fetched.
  void forget() { host_.clear(); }

 private:
  index_t size_ = 0;
  std::vector<R> host_;  ///< off the host: empty where nothing was fetched
  Storage<R, Space> resident_;
  bool cleared_ = false;  ///< whether what is in resident_ counts
};

/// Gradients of what a module published, on a device.
template <class B>
class PublishedGradients {
 public:
  using R = Real<B>;
  using Space = typename B::Space;

  /// Zeros for everything the module publishes.
  void start(PublishedModule<B> const& module) {
    arrange(module, nullptr);
    memory_.start(taken_);
    arrange(module, memory_.data());
  }
  /// `be` is about to add.
  void prepare(B& be) { memory_.view(be); }

  /// dL/dc, dL/dd and dL/de of the module's own map on a side of a site, where it has them.
  RowMapRow<R> map(Side side, index_t site) const {
    return maps_[static_cast<std::size_t>(side)][static_cast<std::size_t>(site)];
  }
  struct Factors {
    R *a = nullptr, *b_transposed = nullptr;
  };
  /// dL/dA [r, i] and dL/dB^T [r, o].
  Factors factors(index_t site) const { return factors_[static_cast<std::size_t>(site)]; }
  /// The gradients of the tensors of a layer's generator.
  GeneratorGradient<R> generator(PublishedModule<B> const& module, index_t layer) const {
    auto const& g = module.generators[static_cast<std::size_t>(layer)].resident;
    auto const at = [&](R const* tensor) {
      return tensor == nullptr ? nullptr : parameters_ + (tensor - module.resident_parameters.data());
    };
    return {at(g.down), at(g.up), at(g.up_bias), at(g.numerator), at(g.denominator), at(g.pool)};
  }

  /// Of all generators' parameters, in the order of Module::parameters; null: there are no generators.
  R* parameters() const { return parameters_; }

  /// Adds what these are in terms of the module's parameters to `into`, and starts again from zero; waits for `be`.
  void add_to(B& be, PublishedModule<B> const& module, R* into) {
    if (taken_ == 0) return;
    memory_.fetch(be);
    arrange(module, memory_.host().data);
    auto const& back = module.back;
    void const* const own = module.module.get();
    for (std::size_t s = 0; s < back.entries.size(); ++s) {
      if (back.entries[s] < 0) continue;
      auto const site = static_cast<index_t>(s);
      for (Side const side : {Side::input, Side::output})
        if (has_map(module, side, s) && back.map != nullptr) back.map(be, own, back.entries[s], map(side, site), into);
      if (!has_factors(module, s) || back.factors == nullptr) continue;
      auto const& info = (*module.sites)[site];
      index_t const r = module.factors[s].rank;
      auto const [a, b_transposed] = factors(site);
      std::vector<R> b(static_cast<std::size_t>(info.out * r));
      for (index_t k = 0; k < r; ++k)
        for (index_t o = 0; o < info.out; ++o) b[static_cast<std::size_t>(o * r + k)] = b_transposed[k * info.out + o];
      back.factors(be, own, back.entries[s],
                   {matrix_view(a, r, info.in), matrix_view(b.data(), info.out, r), module.factors[s].scale}, into);
    }
    if (parameters_ != nullptr)
      for (index_t k = 0; k < back.count; ++k) into[k] += parameters_[k];
    memory_.forget();
    arrange(module, memory_.data());
  }

 private:
  static bool has_map(PublishedModule<B> const& module, Side side, std::size_t site) {
    auto const& table = module.maps[static_cast<std::size_t>(side)];
    return !table.empty() && !table[site].identity();
  }
  static bool has_factors(PublishedModule<B> const& module, std::size_t site) {
    return !module.factors.empty() && module.factors[site].rank != 0;
  }

  // Where everything lies in memory that begins at `base`; null: only counted.
  void arrange(PublishedModule<B> const& module, R* base) {
    taken_ = 0;
    auto const take = [&](index_t size) {
      R* const at = base == nullptr ? nullptr : base + taken_;
      taken_ += round_up(size, 64);  // 256 bytes, what a device's memory is aligned to
      return at;
    };
    auto const sites = static_cast<std::size_t>(module.sites->size());
    for (auto& side : maps_) side.assign(sites, {});
    factors_.assign(sites, {});
    for (std::size_t s = 0; s < sites; ++s) {
      for (Side const side : {Side::input, Side::output}) {
        if (!has_map(module, side, s)) continue;
        auto const& from = module.maps[static_cast<std::size_t>(side)][s];
        auto const like = [&](Numbers<R> const& v) { return v == nullptr ? nullptr : take(from.size); };
        auto& to = maps_[static_cast<std::size_t>(side)][s];
        to.c1 = like(from.c1), to.d = like(from.d), to.e = like(from.e);
        to.size = from.size, to.group = from.group;
      }
      if (has_factors(module, s)) {
        auto const& info = (*module.sites)[static_cast<index_t>(s)];
        factors_[s].a = take(module.factors[s].rank * info.in);
        factors_[s].b_transposed = take(module.factors[s].rank * info.out);
      }
    }
    parameters_ = module.generators.empty() ? nullptr : take(module.back.count);
  }

  GradientBuffer<B> memory_;
  index_t taken_ = 0;
  std::array<std::vector<RowMapRow<R>>, 2> maps_;  ///< by Side, [sites]
  std::vector<Factors> factors_;                   ///< [sites]
  R* parameters_ = nullptr;                        ///< of generators, in the order of Module::parameters
};

}  // namespace graft
