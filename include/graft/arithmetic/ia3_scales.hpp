// SPDX-License-Identifier: Apache-2.0
// (IA)3 modules element by element.
#pragma once

#include <graft/adapter/ia3.hpp>
#include <graft/arithmetic/operands.hpp>

#include <algorithm>
#include <span>
#include <string>
#include <vector>

namespace graft {

/// Where an element of l is, for messages.
struct ScalePlace {
  std::string const& path;
  index_t k;

  template <class... Parts>
  [[noreturn]] void refuse(Parts const&... parts) const {
    raise<ContractError>("graft: element ", k, " of the scaling of ", path, " ", parts...);
  }
};

namespace detail {

/// A module whose every element is f(elements of the modules, place); a module without the site has 1 there.
/// ContractError where one module scales a site's input and another its output.
template <class B, class F>
Module<IA3Scaling, B> map_scales(std::span<ModuleTerm<IA3Scaling, B> const> terms, SiteTable const& sites, Heads heads,
                                 F const& f) {
  auto const parts = parts_by_site(terms, sites);
  auto result = begin_result(terms, heads);
  for (auto const& [site, here] : parts) {
    auto const& shape = here.front().entry->state.l;
    for (auto const& part : here)
      expects(part.entry->state.l.rows == shape.rows && part.entry->state.l.cols == shape.cols, "graft: at ",
              sites[site].path, " one of modules ", *here.front().name, " and ", *part.name,
              " scales the input and the other the output");
    result.add(sites, site, here.front().entry->policy);
  }
  result.allocate();
  std::vector<double> l(terms.size());
  for (auto& entry : result.entries) {
    auto const& here = parts.at(entry.site);
    for (index_t k = 0; k < entry.state.l.size(); ++k) {
      std::fill(l.begin(), l.end(), 1.0);
      std::size_t next = 0;
      for (std::size_t t = 0; t < terms.size() && next < here.size(); ++t)
        if (here[next].name == &terms[t].module->name)
          l[t] = static_cast<double>(here[next].entry->state.l.data[k]), ++next;
      entry.state.l.data[k] =
          static_cast<Real<B>>(f(std::span<double const>(l), ScalePlace{sites[entry.site].path, k}));
    }
  }
  return result;
}

}  // namespace detail
}  // namespace graft
