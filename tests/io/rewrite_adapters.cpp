// SPDX-License-Identifier: Apache-2.0
// For tests/peft_loads_graft.py: reads every adapter folder of the golden models and writes it again.
//   rewrite_adapters MODELS OUT        MODELS/<case>/adapter_<name> -> OUT/<case>/adapter_<name>
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/architectures.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#include <graft/io/model_files.hpp>
#include <graft/io/peft.hpp>
#include <graft/model/model.hpp>

#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>

namespace fs = std::filesystem;
using Policies = graft::Adapters<graft::IA3Scaling, graft::RoAdRotation, graft::LoRADelta, graft::PedroGenerator>;
using Backend = graft::CpuBackend<>;

int main(int argc, char** argv) try {
  if (argc != 3) return std::fprintf(stderr, "usage: rewrite_adapters MODELS OUT\n"), 2;
  int count = 0;
  for (auto const& model : fs::directory_iterator(argv[1])) {
    auto const config = graft::open_model(model.path()).config;
    auto const sites = graft::with_architecture(
        config.architecture, [&]<class Arch>() { return graft::Model<Arch, Policies, Backend>::sites_of(config); });
    for (auto const& entry : fs::directory_iterator(model)) {
      std::string const name = entry.path().filename().string();
      if (!name.starts_with("adapter_")) continue;
      auto const read = graft::read_any_peft<Policies, Backend>(entry.path(), sites, name);
      fs::path const folder = fs::path(argv[2]) / model.path().filename() / name;
      fs::create_directories(folder.parent_path());
      std::visit([&](auto const& module) { graft::write_peft(folder, module, sites); }, read.module);
      ++count;
    }
  }
  std::printf("%d adapter folders written\n", count);
} catch (std::exception const& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
