// SPDX-License-Identifier: Apache-2.0
// From the name of an architecture, known at run time, to its type.
#pragma once

#include <graft/arch/bert.hpp>
#include <graft/arch/gpt2.hpp>
#include <graft/arch/llama.hpp>

#include <string>
#include <utility>

namespace graft {

/// f.template operator()<Arch>() for the architecture of this name (ModelConfig::architecture); all calls must return
/// the same type. Relatives share one type, so that f is compiled once for them. ContractError for another name.
template <class F>
decltype(auto) with_architecture(std::string const& name, F&& f) {
  if (name == "llama" || name == "mistral" || name == "qwen2" || name == "qwen3")
    return std::forward<F>(f).template operator()<Llama>();
  if (name == "gpt2") return std::forward<F>(f).template operator()<Gpt2>();
  if (name == "bert" || name == "roberta") return std::forward<F>(f).template operator()<Bert>();
  raise<ContractError>("graft: architecture ", name,
                       " is not known (llama, mistral, qwen2, qwen3, gpt2, bert, roberta are)");
}

}  // namespace graft
