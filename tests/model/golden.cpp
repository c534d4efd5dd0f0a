// SPDX-License-Identifier: Apache-2.0
// Every golden model answers what transformers and PEFT answer.
#include <tests/catch.hpp>
#include <tests/model/model_under_test.hpp>

#include <graft/io/safetensors.hpp>
#include <graft/testing/close.hpp>

#include <algorithm>
#include <cstdio>

using namespace graft_test;
using graft::testing::alone_bound;
using graft::testing::relative_l2;

namespace {

/// The largest distance of an answer, all requests of the case in one batch, from what transformers gives it alone.
template <class Act>
double worst_of(Case const& c, double bound) {
  auto const model = open<Act>(c);
  auto const expected = read_safetensors(c.folder / "expected.safetensors");
  auto const answers = answer(*model, c.requests);
  REQUIRE(expected.tensors().size() == answers.size());
  double worst = 0;
  for (std::size_t k = 0; k < answers.size(); ++k) {
    auto const& mine = answers[k];
    auto const shape =
        model->config().classifier ? std::vector<index_t>{mine.cols} : std::vector<index_t>{mine.rows, mine.cols};
    auto const& theirs = expected.at(std::to_string(k), shape);
    REQUIRE(theirs.format == Format::f32);
    double const distance =
        relative_l2(mine.view(), matrix_view(reinterpret_cast<float const*>(theirs.data), mine.rows, mine.cols));
    INFO("request " << k);
    CHECK(distance <= bound);
    worst = std::max(worst, distance);
  }
  return worst;
}

}  // namespace

TEST_CASE("golden models in f32", "[isa]") {
  for (auto const& c : cases()) DYNAMIC_SECTION(c.name) {
      // the promise of exact precision: f32 against transformers in f64
      std::printf("%-30s f32 %.1e\n", c.name.c_str(), worst_of<float>(c, 1e-4));
    }
}

TEST_CASE("golden models in f64") {
  for (auto const& c : cases()) DYNAMIC_SECTION(c.name) {
      // transformers computes rotary angles, norms and the softmax in f32 even here, and the files hold f32: 2^-24 each
      std::printf("%-30s f64 %.1e\n", c.name.c_str(), worst_of<double>(c, 1e-6));
    }
}

TEST_CASE("a request alone answers what it answers in a mixed batch") {
  for (auto const& c : cases()) DYNAMIC_SECTION(c.name) {
      auto const model = open<float>(c);
      auto const together = answer(*model, c.requests);
      for (std::size_t k = 0; k < together.size(); ++k) {
        INFO("request " << k);
        auto const alone = answer(*model, std::span(c.requests).subspan(k, 1));
        CHECK(relative_l2(alone[0].view(), together[k].view()) <= alone_bound);
      }
    }
}
