// SPDX-License-Identifier: Apache-2.0
// Any bytes as a GGUF LoRA, with and without the model it is for: read or refused.
#include <tests/fuzz/fuzz.hpp>

#include <graft/arch/llama.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/io/gguf_lora.hpp>
#include <graft/io/hf_config.hpp>

#include <cstdint>

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using B = graft::CpuBackend<>;
  static graft::ModelConfig const config = graft::read_hf_config(GRAFT_TEST_DATA "/models/llama_lora/config.json");
  static graft::SiteTable const sites = [] {
    graft::SiteTable table;
    graft::Llama::add_sites(config, table);
    graft::Llama::Ends<B>::add_sites(config, table);
    return table;
  }();
  graft_fuzz::InputFile const input(data, size);
  graft_fuzz::accept_or_refuse([&] { graft::read_gguf_lora<B>(input.path(), sites, "a", config); });
  graft_fuzz::accept_or_refuse([&] {
    auto const own = graft::gguf_lora_sites(input.path());
    graft::read_gguf_lora<B>(input.path(), own, "a");
  });
  return 0;
}
