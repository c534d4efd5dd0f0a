// SPDX-License-Identifier: Apache-2.0
// LoRA adapters in GGUF files, as llama.cpp reads and writes them.
//
// "<base tensor>.lora_a" [r, in] and ".lora_b" [out, r], one alpha for all: scale = alpha / r, or 1 when alpha is 0. Of
// query and key of llama, B's rows stand in GGUF's order; of the token embedding, A is stored as [vocabulary, r].
#pragma once

#include <graft/adapter/bank.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/module.hpp>
#include <graft/adapter/site.hpp>
#include <graft/arch/config.hpp>
#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/core/scalar.hpp>
#include <graft/io/adapter_tensors.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/gguf.hpp>
#include <graft/io/gguf_names.hpp>
#include <graft/io/peft.hpp>
#include <graft/io/peft_names.hpp>
#include <graft/io/peft_reader.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

namespace detail {

/// The factors of one module as they are stored, checked against each other.
struct GgufLoraPair {
  std::string path;  ///< Hugging Face's name of the module
  index_t layer = -1;
  bool embedding = false;
  TensorInfo const *a = nullptr, *b = nullptr;

  // ggml drops outer dimensions of 1
  static index_t rows(TensorInfo const& tensor) { return tensor.shape.size() == 1 ? 1 : tensor.shape[0]; }
  static index_t cols(TensorInfo const& tensor) { return tensor.shape.back(); }
  index_t rank() const { return cols(*b); }
  index_t in() const { return embedding ? rows(*a) : cols(*a); }
  index_t out() const { return rows(*b); }
};

struct GgufLoraFile {
  Gguf gguf;
  std::string architecture;
  std::vector<GgufLoraPair> pairs;
  std::vector<std::string> warnings;
};

/// What a GGUF LoRA says without a model at hand.
inline GgufLoraFile read_gguf_lora_file(std::filesystem::path const& path) {
  GgufLoraFile file{read_gguf(path), {}, {}, {}};
  auto const fail = [&](auto const&... parts) { raise<FormatError>(file.gguf.tensors.path(), ": ", parts...); };
  auto const is = [&](char const* key, std::string_view expected) {
    auto const value = file.gguf.metadata.get<std::string_view>(key);
    if (value != expected)
      fail("metadata key ", in_quotes(key), " is ", in_quotes(value), ", expected ", in_quotes(expected));
  };
  is("general.type", "adapter");
  is("adapter.type", "lora");
  file.architecture = file.gguf.metadata.get<std::string>("general.architecture");
  if (!in_gguf(file.architecture))
    fail("is for architecture ", in_quotes(file.architecture), "; supported are llama, qwen2, qwen3 and gpt2");

  std::map<std::string, GgufLoraPair> pairs;
  for (auto const& tensor : file.gguf.tensors.tensors()) {
    std::string_view base = tensor.name;
    if (base.ends_with("_norm.weight")) {
      file.warnings.push_back(
          text(file.gguf.tensors.path(), ": tensor ", in_quotes(base), " is ignored, as by llama.cpp"));
      continue;
    }
    auto const dot = base.rfind('.');
    std::string_view const suffix = dot == base.npos ? "" : base.substr(dot);
    if (suffix != ".lora_a" && suffix != ".lora_b") fail("tensor ", in_quotes(base), " is neither lora_a nor lora_b");
    if (!format_info(tensor.format).weight)
      fail("tensor ", in_quotes(base), " is ", format_info(tensor.format).name, ", which holds no real numbers");
    if (tensor.shape.size() > 2)
      fail("tensor ", in_quotes(base), " has shape ", shape_text(tensor.shape), ", expected a matrix");
    base.remove_suffix(suffix.size());
    auto const name = base.ends_with(".weight") ? hf_name(file.architecture, base) : std::nullopt;
    if (!name) fail("tensor ", in_quotes(tensor.name), " has no place in a ", file.architecture, " model");
    GgufLoraPair& pair = pairs[std::string(base)];
    pair.path = name->substr(0, name->rfind('.'));
    pair.embedding = base == "token_embd.weight";
    if (base.starts_with("blk.")) pair.layer = std::strtoll(base.data() + 4, nullptr, 10);
    (suffix == ".lora_a" ? pair.a : pair.b) = &tensor;
  }
  for (auto const& [base, pair] : pairs) {
    if (pair.a == nullptr || pair.b == nullptr)
      fail("tensor ", in_quotes(base + (pair.a == nullptr ? ".lora_a" : ".lora_b")), " is missing");
    index_t const rank = pair.embedding ? pair.cols(*pair.a) : pair.rows(*pair.a);
    if (rank != pair.rank())
      fail("tensor ", in_quotes(pair.a->name), " has shape ", shape_text(pair.a->shape), " of rank ", rank, ", ",
           in_quotes(pair.b->name), " has ", shape_text(pair.b->shape), " of rank ", pair.rank());
    file.pairs.push_back(pair);
  }
  return file;
}

/// One GGUF LoRA on its way to a module.
template <class B>
class GgufLoraReader {
  using R = Real<B>;

 public:
  /// Without `config` the file's own architecture holds, and rows stay in the order they are stored in.
  GgufLoraReader(std::filesystem::path const& path, SiteTable const& sites, ModelConfig const* config)
      : file_(read_gguf_lora_file(path)), sites_(sites), config_(config) {}

  ReadModule<LoRADelta, B> read(std::string name) {
    check_metadata();
    for (auto const& pair : file_.pairs) sort_in(pair);
    if (found_.empty()) fail("has no tensor of a LoRA adapter");
    auto const alpha = metadata().template get_or<double>("adapter.lora.alpha", 0);
    if (!is_finite(alpha)) fail("metadata key 'adapter.lora.alpha' is ", alpha);
    module_.name = std::move(name);
    for (auto const& [site, pair] : found_) add(site, *pair, alpha);
    module_.policy = module_.entries.front().policy;
    module_.allocate();
    for (auto& entry : module_.entries) decode(entry);
    warnings_.insert(warnings_.end(), file_.warnings.begin(), file_.warnings.end());
    return {std::move(module_), std::move(warnings_)};
  }

 private:
  template <class... Parts>
  [[noreturn]] void fail(Parts const&... parts) const {
    raise<FormatError>(path(), ": ", parts...);
  }

  void check_metadata() {
    if (config_ != nullptr && file_.architecture != gguf_architecture(*config_))
      fail("is for architecture ", in_quotes(file_.architecture), ", the model is ",
           in_quotes(gguf_architecture(*config_)));
    if (config_ == nullptr && file_.architecture == "llama")
      warnings_.push_back(text(path(), ": without the model, rows of query and key stay in GGUF's order"));
    if (metadata().contains("adapter.alora.invocation_tokens"))
      fail("metadata key 'adapter.alora.invocation_tokens': activated LoRA is not supported");
    if (auto const key = "adapter.lora.prompt_prefix";
        metadata().contains(key) && !metadata().template get<std::string_view>(key).empty())
      warnings_.push_back(
          text(path(), ": the adapter asks for a prompt prefix, ", key, ", which is left to the caller"));
  }

  void sort_in(GgufLoraPair const& pair) {
    index_t const site = find_site(sites_, pair.path);
    if (site < 0 || !LoRADelta{}.accepts(sites_[site]))
      fail("tensor ", in_quotes(pair.a->name), " belongs to no module of the model that LoRA can adapt");
    found_[site] = &pair;
  }

  void add(index_t site, GgufLoraPair const& pair, double alpha) {
    auto const& info = sites_[site];
    LoRADelta here;
    here.rank = pair.rank();
    here.alpha = alpha == 0 ? static_cast<double>(here.rank) : alpha;
    auto const fits = [&](TensorInfo const& tensor, index_t have, index_t expected, char const* what) {
      if (have != expected)
        fail("tensor ", in_quotes(tensor.name), " has shape ", shape_text(tensor.shape), " for ", have, " ", what,
             ", but ", info.path, " has ", expected);
    };
    fits(*pair.a, pair.in(), info.in, "inputs");
    fits(*pair.b, pair.out(), info.out, "outputs");
    if (index_t const heads = permuted_heads(site); heads != 0 && info.out != heads * config_->head_dim)
      fail("the model has ", info.out, " outputs at ", info.path, ", expected ", heads, " heads of ",
           config_->head_dim);
    if (pair.embedding != (info.kind == SiteKind::embedding))
      fail("tensor ", in_quotes(pair.a->name), " is an embedding's, ", info.path, " is none");
    module_.add(sites_, site, here);
  }
  index_t permuted_heads(index_t site) const {
    return config_ == nullptr ? 0 : gguf_permuted_heads(*config_, sites_[site].path);
  }

  void decode(typename Module<LoRADelta, B>::Entry& entry) const {
    GgufLoraPair const& pair = *found_.at(entry.site);
    auto &a = entry.state.a, &b = entry.state.b;
    decode_finite(path(), *pair.a, a.data);
    decode_finite(path(), *pair.b, b.data);
    if (entry.state.embedding) {
      std::vector<R> const stored(a.data, a.data + a.size());
      for (index_t token = 0; token < a.cols; ++token)
        for (index_t r = 0; r < a.rows; ++r) a(r, token) = stored[static_cast<std::size_t>(token * a.rows + r)];
    }
    if (index_t const heads = permuted_heads(entry.site); heads != 0) {
      std::vector<R> const stored(b.data, b.data + b.size());
      auto const order = gguf_row_order(b.rows, heads);
      for (index_t k = 0; k < b.rows; ++k) {
        R const* const row = stored.data() + order[static_cast<std::size_t>(k)] * b.cols;
        std::copy(row, row + b.cols, b.row(k));
      }
    }
  }

  std::string const& path() const { return file_.gguf.tensors.path(); }
  GgufMetadata const& metadata() const { return file_.gguf.metadata; }

  GgufLoraFile file_;
  SiteTable const& sites_;
  ModelConfig const* config_;
  Module<LoRADelta, B> module_;
  std::map<index_t, GgufLoraPair const*> found_;
  std::vector<std::string> warnings_;
};

/// The alpha most sites agree on, as GGUF stores it: s r of alpha / r scaling, whatever the module's own rule is.
template <class B>
float common_alpha(Module<LoRADelta, B> const& module) {
  std::map<float, int> votes;
  for (auto const& entry : module.entries) {
    auto const alpha = static_cast<float>(entry.policy.scale() * static_cast<double>(entry.policy.rank));
    if (alpha != 0) ++votes[alpha];  // 0 would mean a scale of 1
  }
  float best = 1;
  int most = 0;
  for (auto const& [alpha, count] : votes)
    if (count > most) best = alpha, most = count;
  return best;
}

}  // namespace detail

/// Reads a GGUF LoRA for the model `config` describes, with these sites. The values of query and key of llama come in
/// Hugging Face's row order, as everything in memory does. Any format a weight can have is read. FormatError names the
/// file and the key or tensor that is wrong, missing or not supported.
template <class B>
ReadModule<LoRADelta, B> read_gguf_lora(std::filesystem::path const& path, SiteTable const& sites, std::string name,
                                        ModelConfig const& config) {
  return detail::GgufLoraReader<B>(path, sites, &config).read(std::move(name));
}
/// The same without the model, to look at and not to compute with: how the rows of query and key of llama are ordered
/// depends on its heads, so they stay as stored, and a warning says so.
template <class B>
ReadModule<LoRADelta, B> read_gguf_lora(std::filesystem::path const& path, SiteTable const& sites, std::string name) {
  return detail::GgufLoraReader<B>(path, sites, nullptr).read(std::move(name));
}

/// The sites a GGUF LoRA speaks of, where no model is at hand to ask.
inline SiteTable gguf_lora_sites(std::filesystem::path const& path) {
  SiteTable sites;
  for (auto const& pair : detail::read_gguf_lora_file(path).pairs)
    sites.add({pair.layer, pair.path.substr(pair.path.rfind('.') + 1), pair.path, pair.in(), pair.out(),
               pair.embedding ? SiteKind::embedding : SiteKind::linear});
  return sites;
}

/// Reads a GGUF LoRA and publishes it in the bank under `name`.
template <class List, class B>
LoadedAdapter load_gguf_lora(B& be, Bank<List, B>& bank, std::string name, std::filesystem::path const& path,
                             ModelConfig const& config) {
  auto read = read_gguf_lora<B>(path, bank.sites(), std::move(name), config);
  return {bank.load(be, std::move(read.module)), LoRADelta::peft_type, std::move(read.warnings)};
}

/// Writes the module for llama.cpp, its tensors as f32, f16 or bf16. One alpha holds for the whole file; where a site's
/// scale is another (patterns), B is multiplied by the ratio, while rank-stabilised scaling is exact. ContractError for
/// what the format cannot hold: lora_bias, modules_to_save, adapters of the embedding or head of a model that ties the
/// two, sites without a name in GGUF.
template <class B>
void write_gguf_lora(std::filesystem::path const& path, Module<LoRADelta, B> const& module, SiteTable const& sites,
                     ModelConfig const& config, Format dtype = Format::f32) {
  using R = Real<B>;
  auto const refuse_unless = [&](bool ok, auto const&... parts) {
    expects(ok, "graft: module ", module.name, " cannot be written as a GGUF LoRA: ", parts...);
  };
  refuse_unless(!module.entries.empty(), "it has no sites");
  for (auto const& [saved, tensor] : module.saved) refuse_unless(false, "it brings a replacement of ", saved);

  float const alpha = detail::common_alpha(module);
  std::vector<std::vector<std::byte>> storage;
  std::vector<TensorInfo> tensors;
  auto const add = [&](std::string const& name, index_t rows, index_t cols, R const* values) {
    storage.push_back(detail::encode_finite(name, values, rows * cols, dtype));
    tensors.push_back({name, dtype, {rows, cols}, storage.back().data(), storage.back().size()});
  };
  for (auto const& entry : module.entries) {
    auto const& site = sites[entry.site];
    auto const &a = entry.state.a, &b = entry.state.b;
    refuse_unless(entry.state.b_bias.empty(), "it has a lora_bias at ", site.path);
    // GGUF has one tensor for both, to which llama.cpp would apply an embedding's adapter twice
    refuse_unless(!config.tied || site.layer >= 0, "the model's head shares its weight with the embedding, so that an ",
                  "adapter of ", site.path, " alone has no place there");
    auto const base = gguf_name(config.architecture, site.path + ".weight");
    refuse_unless(base.has_value(), "GGUF has no name for ", site.path, " of architecture ", config.architecture);

    std::vector<R> stored_a(a.data, a.data + a.size()), stored_b(b.data, b.data + b.size());
    auto const own = static_cast<float>(entry.policy.scale() * static_cast<double>(entry.policy.rank));
    if (own != alpha)
      for (R& value : stored_b) value = static_cast<R>(value * (static_cast<double>(own) / static_cast<double>(alpha)));
    if (index_t const heads = gguf_permuted_heads(config, site.path); heads != 0) {
      refuse_unless(b.rows == heads * config.head_dim, site.path, " has ", b.rows, " outputs, expected ", heads,
                    " heads of ", config.head_dim);
      auto const order = gguf_row_order(b.rows, heads);
      auto const in_order = stored_b;
      for (index_t k = 0; k < b.rows; ++k)
        std::copy(in_order.begin() + k * b.cols, in_order.begin() + (k + 1) * b.cols,
                  stored_b.begin() + order[static_cast<std::size_t>(k)] * b.cols);
    }
    if (entry.state.embedding) {
      for (index_t r = 0; r < a.rows; ++r)
        for (index_t token = 0; token < a.cols; ++token)
          stored_a[static_cast<std::size_t>(token * a.rows + r)] = a(r, token);
      add(*base + ".lora_a", a.cols, a.rows, stored_a.data());
    } else {
      add(*base + ".lora_a", a.rows, a.cols, stored_a.data());
    }
    add(*base + ".lora_b", b.rows, b.cols, stored_b.data());
  }

  GgufMetadata metadata;
  metadata.set("general.architecture", gguf_architecture(config));
  metadata.set("general.type", std::string("adapter"));
  if (!module.name.empty()) metadata.set("general.name", module.name);
  metadata.set("adapter.type", std::string("lora"));
  metadata.set("adapter.lora.alpha", alpha);
  write_gguf(path, metadata, tensors);
}

}  // namespace graft
