// SPDX-License-Identifier: Apache-2.0
// What tests of PEDRO stand on: one layer under grouped-query attention, and every option of the generator.
#pragma once

#include <graft/adapter/pedro.hpp>

#include <initializer_list>
#include <vector>

namespace graft_test {

inline graft::SiteTable pedro_layer(graft::index_t width, graft::index_t query, graft::index_t value,
                                    graft::index_t up) {
  using graft::Site;
  graft::SiteTable sites;
  Site const q = sites.add_linear(0, "q_proj", "layers.0.q_proj", width, query);
  Site const v = sites.add_linear(0, "v_proj", "layers.0.v_proj", width, value);
  Site const u = sites.add_linear(0, "up_proj", "layers.0.up_proj", width, up);
  Site const block = sites.add({0, "block_out", "layers.0", width, width, graft::SiteKind::hidden});
  sites.add_layer({block.index, {q.index, 0, query}, {v.index, 0, value}, {u.index, 0, up}, {}});
  return sites;
}

/// A rational activation's denominator is one degree below its numerator.
inline std::vector<graft::PedroGenerator> every_pedro_option(graft::index_t rank,
                                                             std::initializer_list<graft::index_t> numerator_degrees) {
  using Pedro = graft::PedroGenerator;
  std::vector<Pedro> all;
  for (auto const pooling :
       {Pedro::Pooling::last, Pedro::Pooling::mean, Pedro::Pooling::max, Pedro::Pooling::attention})
    for (auto const input : {Pedro::PoolerInput::normalized, Pedro::PoolerInput::raw})
      for (auto const offset : {Pedro::Offset::one, Pedro::Offset::bias})
        for (bool const bias : {false, true})
          for (auto const f : {Pedro::Activation::rational_a, Pedro::Activation::rational_b, Pedro::Activation::gelu,
                               Pedro::Activation::silu, Pedro::Activation::relu})
            for (graft::index_t const degree : numerator_degrees)
              all.push_back({.rank = rank,
                             .pooling = pooling,
                             .pooler_input = input,
                             .offset = offset,
                             .up_bias = bias,
                             .activation = f,
                             .numerator_degree = degree,
                             .denominator_degree = degree - 1});
  return all;
}

}  // namespace graft_test
