// SPDX-License-Identifier: Apache-2.0
// A module whose parameters and gradients are in a device's memory: from parameters to what kernels read, and back from
// the gradients of that. Each is one launch over all sites; nothing waits.
#pragma once

#include <graft/adapter/adapter_set.hpp>
#include <graft/adapter/gradients.hpp>
#include <graft/core/ranges.hpp>

#include <concepts>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

namespace graft {

/// Whether a device trains modules of this policy without asking the host. Generators read the parameters themselves.
template <class P, class B>
concept DeviceTrainable =
    !std::same_as<typename B::Space, HostSpace> &&
    (ElementwisePolicy<P, B> || (GeneratedPolicy<P, B> && !RowMapPolicy<P, B> && !LowRankPolicy<P, B>));

namespace detail {

/// One site of a module: its pieces are [first, first + parameters.size()) of the module's. T: const for gradients.
template <class E, class T>
struct ElementSite {
  index_t first;
  E parameters, gradients;
  SiteNumbers<T> numbers;
};

template <class E, class R>
struct PublishPiece {
  ElementSite<E, R> const* sites;
  index_t count;
  GRAFT_HOST_DEVICE void operator()(index_t k) const {
    auto const& site = *last_not_behind(sites, count, k);
    site.parameters.publish(k - site.first, site.numbers);
  }
};
template <class E, class R>
struct BackwardPiece {
  ElementSite<E, R const> const* sites;
  index_t count;
  GRAFT_HOST_DEVICE void operator()(index_t k) const {
    auto const& site = *last_not_behind(sites, count, k);
    site.parameters.backward(k - site.first, site.numbers, site.gradients);
  }
};

/// Every site of the module, for parameters and gradients at these addresses. numbers(entry) gives what it publishes.
template <class T, class P, class B>
auto element_sites(Module<P, B> const& module, Real<B>* parameters, Real<B>* gradients, auto&& numbers) {
  using E = decltype(module.policy.elements(module.entries[0].state));
  std::vector<ElementSite<E, T>> sites;
  index_t first = 0;
  auto const* const from = module.parameters().data;
  for (auto const& entry : module.entries) {
    auto const at = [&](Real<B>* base) { return entry.policy.elements(state_over(entry.state, from, base)); };
    sites.push_back({first, at(parameters), at(gradients), numbers(entry)});
    first += sites.back().parameters.size();
  }
  return std::pair(std::move(sites), first);
}

}  // namespace detail

/// Writes what the module publishes, in place, from parameters in B::Space. `published` must be the bank's version of
/// this very module, which nobody else relies on not changing.
template <class P, class B>
requires DeviceTrainable<P, B>
void publish_elements(B& be, Module<P, B> const& module, VectorView<Real<B>, typename B::Space> parameters,
                      PublishedModule<B> const& published) {
  using R = Real<B>;
  auto const scope = be.scope();
  if constexpr (ElementwisePolicy<P, B>) {
    auto const write = [](Numbers<R> const& v) { return const_cast<R*>(v.full()); };  // memory of `published`
    auto const numbers = [&](auto const& entry) {
      auto const s = static_cast<std::size_t>(entry.site);
      SiteNumbers<R> to;
      for (std::size_t side = 0; side < 2; ++side)
        if (!published.maps[side].empty() && !published.maps[side][s].identity()) {
          auto const& map = published.resident_maps.rows(side)[s];
          to.map = {write(map.c1), write(map.d), write(map.e), map.size, map.group, nullptr};
        }
      if (!published.factors.empty()) {
        auto const& factors = published.resident_factors.rows()[entry.site];
        to.a = write(factors.a), to.b_transposed = write(factors.b_transposed);
      }
      return to;
    };
    auto const [sites, pieces] = detail::element_sites<R>(module, parameters.data, parameters.data, numbers);
    using Listed = typename std::remove_cvref_t<decltype(sites)>::value_type;
    for_each_element(be, pieces,
                     detail::PublishPiece<decltype(Listed::parameters), R>{upload(be, std::span<Listed const>(sites)),
                                                                           static_cast<index_t>(sites.size())});
  } else {
    convert(be, matrix_view<typename B::Space>(static_cast<R const*>(parameters.data), 1, parameters.size),
            matrix_view<typename B::Space>(published.resident_parameters.data(), 1, parameters.size));
  }
}

/// Adds to `gradients` what `from` is in terms of the parameters.
template <class P, class B>
requires DeviceTrainable<P, B>
void gather_gradients(B& be, Module<P, B> const& module, VectorView<Real<B>, typename B::Space> parameters,
                      PublishedModule<B> const& published, PublishedGradients<B> const& from,
                      VectorView<Real<B>, typename B::Space> gradients) {
  using R = Real<B>;
  auto const scope = be.scope();
  if constexpr (ElementwisePolicy<P, B>) {
    auto const numbers = [&](auto const& entry) {
      SiteNumbers<R const> grad;
      for (Side const side : {Side::input, Side::output})
        if (auto const& map = published.maps[static_cast<std::size_t>(side)];
            !map.empty() && !map[static_cast<std::size_t>(entry.site)].identity())
          grad.map = from.map(side, entry.site);
      auto const factors = from.factors(entry.site);
      grad.a = factors.a, grad.b_transposed = factors.b_transposed;
      return grad;
    };
    auto const [sites, pieces] = detail::element_sites<R const>(module, parameters.data, gradients.data, numbers);
    using Listed = typename std::remove_cvref_t<decltype(sites)>::value_type;
    for_each_element(be, pieces,
                     detail::BackwardPiece<decltype(Listed::parameters), R>{upload(be, std::span<Listed const>(sites)),
                                                                            static_cast<index_t>(sites.size())});
  } else if (from.parameters() != nullptr) {
    accumulate(be, R{1}, VectorView<R const, typename B::Space>{from.parameters(), gradients.size}, gradients);
  }
}

}  // namespace graft
