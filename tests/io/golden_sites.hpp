// SPDX-License-Identifier: Apache-2.0
// Configuration and sites of the models under tests/golden/data/models.
#pragma once

#include <graft/adapter/site.hpp>
#include <graft/arch/architectures.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/io/hf_config.hpp>

#include <filesystem>

namespace graft_test {

struct GoldenModel {
  std::filesystem::path folder;
  graft::ModelConfig config;
  graft::SiteTable sites;
};

inline GoldenModel golden_model(std::filesystem::path const& name) {
  GoldenModel model{GRAFT_TEST_DATA "/models" / name, {}, {}};
  model.config = graft::read_hf_config(model.folder / "config.json");
  graft::with_architecture(model.config.architecture, [&]<class Arch>() {
    Arch::add_sites(model.config, model.sites);
    Arch::template Ends<graft::CpuBackend<>>::add_sites(model.config, model.sites);
  });
  return model;
}

}  // namespace graft_test
