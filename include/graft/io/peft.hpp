// SPDX-License-Identifier: Apache-2.0
// Adapter folders of HF PEFT, read into a module, written from one, or loaded into a bank, for any policy.
//
// A policy's peft_type, options, shape and tensor names say all there is to know: a new one is read and written with no
// change here. Methods that PEFT lacks use the same two files; PEFT cannot read those.
#pragma once

#include <graft/adapter/bank.hpp>
#include <graft/adapter/module.hpp>
#include <graft/adapter/policy.hpp>
#include <graft/adapter/site.hpp>
#include <graft/core/error.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/compiled.hpp>
#include <graft/io/peft_config.hpp>
#include <graft/io/peft_reader.hpp>
#include <graft/io/peft_writer.hpp>

#if defined(GRAFT_EXTERN_FILES)
#include <graft/adapter/ia3.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/pedro.hpp>
#include <graft/adapter/road.hpp>
#include <graft/backend/cpu/cpu_backend.hpp>
#endif

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace graft {

/// A module of one of the policies in a list.
template <class List, class B>
struct AnyModule;
template <class... Ps, class B>
struct AnyModule<Adapters<Ps...>, B> {
  std::variant<Module<Ps, B>...> module;
  std::vector<std::string> warnings;
};

/// Reads an adapter folder of whichever policy of the list has its peft_type; see read_peft.
template <class List, class B>
AnyModule<List, B> read_any_peft(std::filesystem::path const& folder, SiteTable const& sites, std::string name,
                                 WeightMap const* base = nullptr) {
  auto const config = read_peft_config(folder);
  return [&]<class... Ps>(Adapters<Ps...>) {
    AnyModule<List, B> result;
    bool known = false;
    auto const read = [&]<class P>(std::type_identity<P>) {
      if (known || config.peft_type != P::peft_type) return;
      known = true;
      auto found = detail::read_module<P, B>(config, sites, std::move(name), base);
      result.module = std::move(found.module);
      result.warnings = std::move(found.warnings);
    };
    (read(std::type_identity<Ps>{}), ...);
    if (!known) {
      std::string all;
      ((all += text(all.empty() ? "" : ", ", Ps::peft_type)), ...);
      config.fail("peft_type ", in_quotes(config.peft_type), " is not supported; known are ", all);
    }
    return result;
  }(List{});
}

/// What `load_adapter` published.
struct LoadedAdapter {
  std::uint64_t version = 0;
  std::string_view peft_type;
  std::vector<std::string> warnings;
};

/// Reads an adapter folder and publishes it in the bank under `name`. FormatError also for what a bank does not take.
/// With `base`, the model's own tensors, copies of those take no memory; see read_peft.
template <class List, class B>
LoadedAdapter load_adapter(B& be, Bank<List, B>& bank, std::string name, std::filesystem::path const& folder,
                           WeightMap const* base = nullptr) {
  auto read = read_any_peft<List, B>(folder, bank.sites(), std::move(name), base);
  auto const publish = [&]<class P>(Module<P, B>& module) {
    return LoadedAdapter{bank.load(be, std::move(module)), P::peft_type, std::move(read.warnings)};
  };
  return checked_at(folder.string(), [&] { return std::visit(publish, read.module); });
}
/// Reads an adapter folder for a model and publishes it in the model's bank under `name`.
template <class M>
requires requires(M& model) { model.bank().sites(), model.weights(); }
LoadedAdapter load_adapter(auto& be, M& model, std::string name, std::filesystem::path const& folder) {
  return load_adapter(be, model.bank(), std::move(name), folder, &model.weights());
}

// What an adapter folder of graft's own policies is read and written by on the CPU, compiled where files are.
#if defined(GRAFT_EXTERN_FILES)
#define GRAFT_ONCE_PER_POLICY(P)                                                                             \
  GRAFT_ONCE_WITH_FILES ReadModule<P, CpuBackend<>> detail::read_module(PeftConfig const&, SiteTable const&, \
                                                                        std::string, WeightMap const*);      \
  GRAFT_ONCE_WITH_FILES void write_peft(std::filesystem::path const&, Module<P, CpuBackend<>> const&,        \
                                        SiteTable const&, PeftWriteOptions const&)
GRAFT_ONCE_PER_POLICY(IA3Scaling);
GRAFT_ONCE_PER_POLICY(LoRADelta);
GRAFT_ONCE_PER_POLICY(PedroGenerator);
GRAFT_ONCE_PER_POLICY(RoAdRotation);
#undef GRAFT_ONCE_PER_POLICY
#endif

}  // namespace graft
