// SPDX-License-Identifier: Apache-2.0
// What torch and transformers computed: tests/golden/data/training.json, by tests/golden/make_training.py.
#pragma once

#include <graft/io/json.hpp>
#include <graft/testing/matrix.hpp>

#include <string>
#include <vector>

namespace graft_test {

inline nlohmann::json const& training_golden() {
  static auto const content = graft::read_json(std::string(GRAFT_TEST_DATA) + "/training.json");
  return content;
}
inline std::vector<double> numbers(nlohmann::json const& list) { return list.get<std::vector<double>>(); }
inline graft::testing::Matrix matrix(nlohmann::json const& rows) {
  graft::testing::Matrix result(static_cast<graft::index_t>(rows.size()), static_cast<graft::index_t>(rows[0].size()));
  result.values.clear();
  for (auto const& row : rows)
    for (auto const& value : row) result.values.push_back(value.get<double>());
  return result;
}

}  // namespace graft_test
