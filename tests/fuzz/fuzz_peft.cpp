// SPDX-License-Identifier: Apache-2.0
// Any bytes as one of the two files of an adapter folder, the other being right: read, with and without the model it is
// for, or refused. What begins with a brace is taken for adapter_config.json, anything else for the tensors.
#include <tests/fuzz/fuzz.hpp>

#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/arch/llama.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/io/hf_config.hpp>
#include <graft/io/peft.hpp>
#include <graft/io/peft_sites.hpp>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
using B = graft::CpuBackend<>;
using List = graft::Adapters<graft::IA3Scaling, graft::RoAdRotation, graft::LoRADelta, graft::PedroGenerator>;

/// A folder whose one file is a golden adapter's and whose other is the input, in /proc through a link.
struct Place {
  fs::path folder;
  graft::SiteTable sites;
};

/// One place per adapter and kind of file, made once; the links to the input are set anew each time.
class Places {
 public:
  Places() {
    std::string root = (fs::temp_directory_path() / "graft-fuzz-XXXXXX").string();
    if (::mkdtemp(root.data()) == nullptr) std::abort();
    root_ = root;
    for (std::string const adapter : {"llama_sums/adapter_lora_b", "llama_sums/adapter_road_b",
                                      "llama_sums/adapter_ia3_b", "llama_pedro/adapter_degrees"}) {
      fs::path const golden = fs::path(GRAFT_TEST_DATA "/models") / adapter;
      auto const config = graft::read_hf_config(golden.parent_path() / "config.json");
      graft::SiteTable sites;
      graft::Llama::add_sites(config, sites);
      graft::Llama::Ends<B>::add_sites(config, sites);
      for (int tensors = 0; tensors < 2; ++tensors) {
        fs::path const folder = root_ / std::to_string(kinds_[0].size() + kinds_[1].size());
        fs::create_directory(folder);
        fs::create_symlink(golden / files[1 - tensors], folder / files[1 - tensors]);
        kinds_[tensors].push_back({folder, sites});
      }
    }
  }
  ~Places() { fs::remove_all(root_); }

  /// The places for input of this kind, with it in them.
  std::vector<Place> const& with(fs::path const& input, bool tensors) const {
    for (auto const& place : kinds_[tensors]) {
      fs::remove(place.folder / files[tensors]);
      fs::create_symlink(input, place.folder / files[tensors]);
    }
    return kinds_[tensors];
  }

 private:
  static constexpr char const* files[] = {"adapter_config.json", "adapter_model.safetensors"};
  fs::path root_;
  std::vector<Place> kinds_[2];
};

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Places const places;
  graft_fuzz::InputFile const input(data, size);
  for (auto const& [folder, sites] : places.with(input.path(), size == 0 || data[0] != '{')) {
    graft_fuzz::accept_or_refuse([&, at = folder, &table = sites] {
      graft::Bank<List, B> bank(table);
      B be;
      graft::load_adapter(be, bank, "a", at);
    });
    graft_fuzz::accept_or_refuse([&, at = folder] { graft::read_any_peft<List, B>(at, graft::peft_sites(at), "a"); });
  }
  return 0;
}
