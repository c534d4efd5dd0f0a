// SPDX-License-Identifier: Apache-2.0
// Any bytes as a model's config.json: refused, or sites, layers and rotary frequencies follow from it.
#include <tests/fuzz/fuzz.hpp>

#include <graft/arch/architectures.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/io/hf_config.hpp>

#include <cstdint>
#include <cstdlib>

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  graft_fuzz::InputFile const input(data, size);
  graft_fuzz::accept_or_refuse([&] {
    auto const config = graft::read_hf_config(input.path());
    if (config.rope.dimensions > 0 && config.rope.dimensions < 1000) graft::rope_frequencies(config.rope);
    if (config.layers > 100) return;  // a model's tensors are counted before
    graft::SiteTable sites;
    graft::with_architecture(config.architecture, [&]<class Arch>() {
      Arch::add_sites(config, sites);
      Arch::template Ends<graft::CpuBackend<>>::add_sites(config, sites);
      for (graft::index_t l = 0; l < config.layers; ++l) (void)config.attention(l, Arch::causal);
    });
    for (auto const& site : sites.all())
      if (sites.find(site.path) < 0) std::abort();
  });
  return 0;
}
