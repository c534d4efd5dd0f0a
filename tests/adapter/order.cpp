// SPDX-License-Identifier: Apache-2.0
// Several policies on one layer: the order of Adapters<...> is the order of wrapping, and within a policy a request's
// list is a weighted sum. Every result is compared with the definition, evaluated densely in double.
#include <tests/adapter/loaded.hpp>
#include <tests/catch.hpp>

namespace {

using namespace graft_test;
using Pedro = PedroGenerator;

TEMPLATE_TEST_CASE("every order of policies is the definition's, in random mixes", "",
                   (Adapters<RoAdRotation, LoRADelta>), (Adapters<LoRADelta, RoAdRotation>),
                   (Adapters<IA3Scaling, LoRADelta>), (Adapters<LoRADelta, IA3Scaling>),
                   (Adapters<RoAdRotation, Pedro>), (Adapters<Pedro, RoAdRotation>),
                   (Adapters<IA3Scaling, RoAdRotation, LoRADelta, Pedro>),
                   (Adapters<Pedro, LoRADelta, RoAdRotation, IA3Scaling>),
                   (Adapters<RoAdRotation, Pedro, IA3Scaling, LoRADelta>),
                   (Adapters<LoRADelta, IA3Scaling, Pedro, RoAdRotation>)) {
  CHECK(worst_of_random<TestType, double>(Shape::separate, 1) <= bound<double>);
  CHECK(worst_of_random<TestType, double>(Shape::fused, 2) <= bound<double>);
}

}  // namespace
