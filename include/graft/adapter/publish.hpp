// SPDX-License-Identifier: Apache-2.0
// What a module becomes when it is published: maps, factors and generators by site, where kernels read them.
#pragma once

#include <graft/adapter/adapter_set.hpp>

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace graft::detail {

/// Turns modules for a table of sites into what a bank holds, with numbers in f32 or bf16.
template <class B>
class Publisher {
 public:
  using R = Real<B>;
  using Published = PublishedModule<B>;

  Publisher(std::shared_ptr<SiteTable const> sites, AdapterStorage storage)
      : sites_(std::move(sites)), storage_(storage) {}

  /// Everything but what only the bank knows: the policy's place in its list, stages and version. ContractError when
  /// the module is of a model with other sites, or brings a tensor that cannot be replaced for one request.
  template <class P>
  std::shared_ptr<Published> published(B& be, std::shared_ptr<Module<P, B>> module) const {
    check_fits(*module, *sites_);
    for (auto const& [tensor, saved] : module->saved) check_saved(module->name, tensor, saved);
    auto out = std::make_shared<Published>();
    out->storage = NumberStorage<R>(storage_);
    out->name = module->name;
    out->saved = &module->saved;
    out->back = backpropagation(*module, sites_->size());
    out->sites = sites_;
    for (auto const& [tensor, saved] : module->saved) out->replacements[tensor] = replacement(*out, saved);
    for (auto const& entry : module->entries) {
      if constexpr (RowMapPolicy<P, B>) publish_map(be, entry, *out);
      if constexpr (LowRankPolicy<P, B>) publish_factors(be, entry, *out);
      if constexpr (GeneratedPolicy<P, B>) publish_generator(entry, *out);
      if constexpr (requires { entry.policy.positions; })
        if ((*sites_)[entry.site].kind == SiteKind::hidden) out->positions = entry.policy.positions;
    }
    make_resident(*module, *out);
    // what was published stands for the parameters, unless it points to them: in f32, and generators
    if (storage_ != AdapterStorage::full && out->generators.empty()) module->discard_parameters();
    out->module = std::move(module);
    return out;
  }

 private:
  static constexpr bool on_host = std::same_as<typename B::Space, HostSpace>;

  // Requests may replace what stands outside the layers; a tensor nobody would ask for must not pass in silence.
  void check_saved(std::string const& name, std::string const& tensor, SavedTensor const& saved) const {
    auto const dot = tensor.rfind('.');
    index_t const site = dot == std::string::npos ? -1 : sites_->find(tensor.substr(0, dot));
    bool const weight = tensor.ends_with(".weight"), bias = tensor.ends_with(".bias");
    expects(site >= 0 || !(tensor.starts_with("score.") || tensor.starts_with("classifier.")), "graft: adapter ", name,
            " brings the head of a classifier, ", tensor, ", and this model has none; its base is the model saved as ",
            "ForSequenceClassification");
    expects(site >= 0 && (*sites_)[site].layer < 0 && (weight || (bias && (*sites_)[site].kind == SiteKind::linear)),
            "graft: adapter ", name, " brings its own ", tensor,
            ", but only embeddings and heads can be replaced for one request");
    auto const& info = (*sites_)[site];
    auto const shape = bias                               ? std::vector<index_t>{info.out}
                       : info.kind == SiteKind::embedding ? std::vector<index_t>{info.in, info.out}
                                                          : std::vector<index_t>{info.out, info.in};
    index_t const elements = bias ? info.out : info.in * info.out;
    expects(saved.shape == shape && static_cast<index_t>(saved.values.size()) == elements, "graft: the ", tensor,
            " of adapter ", name, " does not have the model's shape");
  }

  // On the host a replacement points into the module; elsewhere it is a copy, a matrix in the backend's activations.
  static Replacement<B> replacement(Published& out, SavedTensor const& saved) {
    auto const elements = static_cast<index_t>(saved.values.size());
    index_t const cols = saved.shape.empty() ? elements : saved.shape.back(), rows = cols > 0 ? elements / cols : 0;
    Replacement<B> result;
    if constexpr (on_host) {
      result.weight = dense_weight(matrix_view(saved.values.data(), rows, cols));
      if constexpr (std::same_as<R, float>) {
        result.vector = {saved.values.data(), elements};
      } else {
        auto const values = std::make_shared<std::vector<R> const>(saved.values.begin(), saved.values.end());
        result.vector = {values->data(), elements};
        out.keep.push_back(values);
      }
    } else {
      auto const [weight, keep] = resident_weight<B>(dense_weight(matrix_view(saved.values.data(), rows, cols)));
      result.weight = weight;
      out.keep.push_back(keep);
      auto const vector = std::make_shared<Storage<R, typename B::Space> const>(
          std::span<R const>(saved.values.data(), saved.values.size()));
      result.vector = vector->view();
      out.keep.push_back(vector);
    }
    return result;
  }

  // What a policy gives at one of its sites.
  void publish_map(B& be, auto const& entry, Published& out) const {
    SiteInfo const& info = (*sites_)[entry.site];
    RowMapForm const form = entry.policy.template form<B>(info, entry.state);
    if (!form.present) return;
    auto& maps = out.maps[static_cast<std::size_t>(form.side)];
    maps.resize(static_cast<std::size_t>(sites_->size()));
    index_t const size = form.side == Side::input ? info.in : info.out;
    maps[static_cast<std::size_t>(entry.site)] =
        out.storage.keep_map(size, form.c, form.d, form.e, form.group,
                             [&](RowMapRow<R> const& map) { entry.policy.coefficients(be, entry.state, map); });
  }
  void publish_factors(B& be, auto const& entry, Published& out) const {
    auto const f = entry.policy.factors(be, entry.state);
    Numbers<R> a = f.a.data;
    if (storage_ != AdapterStorage::full)
      a = out.storage.keep(f.a.size(), [&](R* to) { std::copy_n(f.a.data, f.a.size(), to); });
    else if (f.memory != nullptr)
      out.keep.push_back(f.memory);
    auto const b_transposed = out.storage.keep(f.b.size(), [&](R* to) {
      for (index_t o = 0; o < f.b.rows; ++o)
        for (index_t r = 0; r < f.b.cols; ++r) to[r * f.b.rows + o] = f.b(o, r);
    });
    out.factors.resize(static_cast<std::size_t>(sites_->size()));
    out.factors[static_cast<std::size_t>(entry.site)] = {a, b_transposed, f.a.rows, f.scale};
  }
  void publish_generator(auto const& entry, Published& out) const {
    using P = std::remove_cvref_t<decltype(entry.policy)>;
    using State = std::remove_cvref_t<decltype(entry.state)>;
    using ConstView = MatrixView<typename B::Act const, typename B::Space>;
    auto const place = static_cast<std::size_t>((*sites_)[entry.site].layer);
    auto const& layer = sites_->layers()[place];
    out.generators.resize(sites_->layers().size());
    auto& generator = out.generators[place];
    generator.policy = &entry.policy;
    generator.state = &entry.state;
    generator.site = entry.site;
    generator.vectors = layer.query.size + layer.value.size + layer.up.size;
    generator.query = layer.query.size;
    generator.rotated_query = entry.policy.rotated_query() && layer.rotated_query.site >= 0;
    generator.resident = entry.policy.generator(entry.state);
    if constexpr (on_host) {
      generator.scratch_size = [](void const* policy, void const* state, index_t prompt_rows) {
        return static_cast<P const*>(policy)->scratch_size(*static_cast<State const*>(state), prompt_rows);
      };
      generator.generate = [](B& be, void const* policy, void const* state, ConstView normalized, ConstView raw,
                              VectorView<R> scratch, VectorView<R> vectors) {
        static_cast<P const*>(policy)->generate(be, *static_cast<State const*>(state), normalized, raw, scratch,
                                                vectors);
      };
    }
  }
  // Copies all of it to where kernels read it, where that is not the host's memory.
  template <class P>
  void make_resident(Module<P, B> const& module, Published& out) const {
    if (!out.factors.empty())
      out.resident_factors = ResidentFactors<R, typename B::Space>(
          out.factors, [&](index_t site) { return std::pair((*sites_)[site].in, (*sites_)[site].out); });
    if constexpr (!on_host) {
      std::vector<RowMapRow<R const>> const* const sides[] = {&out.maps[0], &out.maps[1]};
      out.resident_maps = ResidentMaps<R, typename B::Space>(std::span(sides));
    }
    if constexpr (GeneratedPolicy<P, B> && !on_host) {
      auto const all = module.parameters();
      out.resident_parameters = Storage<R, typename B::Space>(std::span<R const>(all.data, all.data + all.size));
      for (auto& generator : out.generators)
        for (auto* tensor : {&generator.resident.down, &generator.resident.up, &generator.resident.up_bias,
                             &generator.resident.numerator, &generator.resident.denominator, &generator.resident.pool})
          if (*tensor != nullptr) *tensor = out.resident_parameters.data() + (*tensor - all.data);
    }
  }

  std::shared_ptr<SiteTable const> sites_;
  AdapterStorage storage_;
};

}  // namespace graft::detail
