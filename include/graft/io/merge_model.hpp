// SPDX-License-Identifier: Apache-2.0
// Adapters merged into a model's file, tensor by tensor, and unmerged from it.
#pragma once

#include <graft/arch/weights.hpp>
#include <graft/arithmetic/fold.hpp>
#include <graft/io/merge_record.hpp>
#include <graft/io/model_files.hpp>
#include <graft/io/model_weights.hpp>
#include <graft/io/model_writer.hpp>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace graft {

/// What merging did to one tensor; norms are Frobenius.
struct MergedTensor {
  std::string name;
  double change = 0;          ///< of W' - W
  double requantisation = 0;  ///< of what storing W' rounded away
  double size = 0;            ///< of the tensor that was there
  double mismatch = 0;        ///< after unmerging by formula: of what merging again differs from what was there
  /// Above 0.5, the format swallows half of what the adapters say.
  double share() const { return change > 0 ? requantisation / change : 0; }
};

/// How a model file names and orders tensors.
struct ModelLayout {
  bool gguf = false;
  bool prefixed = false;  ///< a Hugging Face folder whose names have the class's prefix

  ModelLayout(ModelConfig const& config, TensorFile const& file, bool is_gguf) : gguf(is_gguf), config_(&config) {
    prefixed = detail::is_prefixed(config, file);
    for (auto const& [beside, of_decoder] : detail::decoder_biases)
      if (!is_gguf && file.find(beside) != nullptr && file.find(of_decoder) == nullptr)
        decoder_bias_ = {beside, of_decoder};
  }
  /// Hugging Face's name of a stored tensor, or nothing where the model has no such tensor.
  std::string class_name(std::string const& stored) const {
    if (gguf) return hf_name(config_->architecture, stored).value_or("");
    if (!stored.empty() && stored == decoder_bias_.first) return decoder_bias_.second;
    std::string const name = detail::class_name(*config_, stored, prefixed);
    return detail::is_of_class(*config_, name) ? name : "";
  }
  /// The inverse, for a tensor outside the layers that the file does not have yet.
  std::string stored_name(std::string const& name) const {
    if (gguf) return *gguf_name(config_->architecture, name);
    bool const bare = !prefixed && name.starts_with(config_->prefix);
    return bare ? name.substr(config_->prefix.size()) : name;
  }
  /// [rows]: the model's row k is stored row order[k]; empty: in order.
  std::vector<std::int32_t> order(std::string const& name, index_t rows) const {
    index_t const heads = gguf ? gguf_permuted_heads(*config_, name.substr(0, name.rfind('.'))) : 0;
    return heads == 0 ? std::vector<std::int32_t>{} : gguf_row_order(rows, heads);
  }
  bool transposed(std::string const& name) const {
    return !gguf && config_->architecture == "gpt2" && detail::is_conv1d(name);
  }
  /// A bias the file does not have yet, where llama.cpp and graft would read one.
  std::optional<TensorConversion> new_bias(std::string const& name, index_t size) const {
    bool const optional_there = gguf && gguf_architecture(*config_) == "llama";
    auto const stored = optional_there ? gguf_name(config_->architecture, name) : std::nullopt;
    if (!stored || !stored->starts_with("blk.")) return std::nullopt;
    return conversion({*stored, Format::f32, {size}, nullptr, static_cast<std::size_t>(4 * size)}, *stored,
                      Format::f32);
  }

 private:
  ModelConfig const* config_;
  std::pair<std::string, std::string> decoder_bias_;  // as it is stored and as it is used, where they differ
};

/// Computes the tensors of a model file with adapters folded in, or taken out, one layer at a time.
template <class B>
class MergedWeights {
 public:
  /// `conversions`: from the tensors of the file that is there to those of the one to be written; biases that an
  /// adapter needs and the file lacks are added, and so is a head of its own for a model whose head and embedding are
  /// one tensor that is not one any more. ContractError, before anything is computed, when the adapters cannot be
  /// merged into this model, or its file has no place for such a bias.
  MergedWeights(AdapterSet<B> const& set, SiteTable const& sites, ModelConfig const& config, WeightMap const& weights,
                ModelLayout const& layout, std::vector<TensorConversion>& conversions, bool inward, Executor& executor)
      : set_(set), sites_(sites), weights_(weights), layout_(layout), inward_(inward), executor_(executor) {
    check_mergeable(set, sites);
    for (index_t s = 0; s < sites.size(); ++s)
      if (changes(set, s)) sites_by_tensor_[sites[s].path + ".weight"] = sites_by_tensor_[sites[s].path + ".bias"] = s;
    for (auto const& member : set.members)
      for (auto const& [path, saved] : *member.module->saved) {
        expects(inward, "graft: adapter ", member.module->name, " brought its own ", path,
                "; what stood there before is known to an undo file or the original only");
        saved_.emplace(path, &saved);
      }
    if (config.has_tied_head()) untie(config, conversions);
    std::set<std::string> present;
    for (auto const& conversion : conversions) {
      std::string const name = layout.class_name(conversion.to.name);
      present.insert(name);
      auto const site = sites_by_tensor_.find(name);
      bool const bias = name.ends_with(".bias");
      if (site == sites_by_tensor_.end()) {
        if (saved_.contains(name)) touched_[conversion.to.name] = {name, -1, bias};
        continue;
      }
      if (bias && !saved_.contains(name) && !moves_bias(site->second)) continue;
      touched_[conversion.to.name] = {name, site->second, bias};
    }
    for (auto const& [path, saved] : saved_)
      expects(present.contains(path), "graft: an adapter brings its own ", path,
              ", which the model's file does not have");
    for (auto const& [name, site] : sites_by_tensor_) {
      if (!name.ends_with(".bias") || present.contains(name) || !brings_bias(site)) continue;
      auto made = layout.new_bias(name, sites[site].out);
      expects(made.has_value(), "graft: an adapter shifts the output of ", sites[site].path,
              ", which has no bias, and a ", config.architecture, " model's file has no place for one");
      touched_[made->to.name] = {name, site, true};
      created_.insert(made->to.name);
      conversions.push_back(std::move(*made));
    }
    for (auto const& conversion : conversions) conversions_[conversion.to.name] = &conversion;
  }
  MergedWeights(MergedWeights const&) = delete;
  MergedWeights& operator=(MergedWeights const&) = delete;

  bool touches(std::string const& stored) const { return touched_.contains(stored); }
  /// Whether the head gets a tensor of its own, which the model must then be told to use.
  bool unties() const { return !tied_head_.empty(); }
  /// Biases, or a head, that the file did not have.
  std::set<std::string> const& created() const { return created_; }

  /// The bytes of a touched tensor, in its new format and the file's row order.
  std::vector<std::byte> encode(std::string const& name) {
    Touched const& touched = touched_.at(name);
    Pair const& layer = layer_of(touched);
    auto const& after = touched.bias ? layer.after.bias : layer.after.weight;
    auto const& before = touched.bias ? layer.before.bias : layer.before.weight;
    std::vector<float> in_file(after.size());
    each_place(touched, layer.after, [&](std::size_t here, std::size_t there) { in_file[there] = after[here]; });
    StoredRows stored = store(conversions_.at(name)->to, in_file);

    MergedTensor report;
    report.name = name;
    report.requantisation = stored.error;
    report.change = distance(after, before);
    report.size = distance(before, {});
    if (!inward_) {
      DenseLayer again = layer.after;
      auto& values = touched.bias ? again.bias : again.weight;
      each_place(touched, again, [&](std::size_t here, std::size_t there) { values[here] = stored.values[there]; });
      fold_in(set_, sites_, touched.site, again, executor_);
      report.mismatch = distance(values, before);
    }
    report_.push_back(std::move(report));
    return std::move(stored.bytes);
  }

  /// Of the tensors encoded so far.
  std::vector<MergedTensor> const& report() const { return report_; }

 private:
  struct Touched {
    std::string name;   // Hugging Face's
    index_t site = -1;  // -1: replaced as a whole
    bool bias = false;
  };
  struct Pair {
    std::string path;
    DenseLayer before, after;
  };

  /// f(place in the model's matrix, place in the file) for every number of a touched tensor.
  void each_place(Touched const& touched, DenseLayer const& layer, auto&& f) const {
    auto const at = [](index_t place) { return static_cast<std::size_t>(place); };
    if (touched.bias) {
      auto const size = static_cast<index_t>(layer.bias.size());
      auto const order = layout_.order(touched.name, size);
      for (index_t k = 0; k < size; ++k) f(at(k), order.empty() ? at(k) : at(order[at(k)]));
      return;
    }
    bool const turned = layout_.transposed(touched.name);
    auto const order = layout_.order(touched.name, layer.rows);
    for (index_t r = 0; r < layer.rows; ++r) {
      index_t const row = order.empty() ? r : order[at(r)];
      for (index_t c = 0; c < layer.cols; ++c)
        f(at(r * layer.cols + c), turned ? at(c * layer.rows + r) : at(row * layer.cols + c));
    }
  }

  /// Numbers as they are stored: the bytes, what these say, and the norm of what was rounded away.
  struct StoredRows {
    std::vector<std::byte> bytes;
    std::vector<float> values;
    double error = 0;
  };
  StoredRows store(TensorInfo const& to, std::vector<float> const& values) const {
    StoredRows stored{std::vector<std::byte>(to.bytes), std::vector<float>(values.size())};
    index_t const width = to.shape.back(), count = static_cast<index_t>(values.size()) / width;
    std::atomic<bool> lost{false};
    std::vector<double> errors(static_cast<std::size_t>(count));
    executor_.run(count, [&](index_t r) {
      float const* const row = values.data() + r * width;
      std::byte* const out = stored.bytes.data() + r * row_bytes(to.format, width);
      if (detail::loses_a_value(to.format, row, width)) lost = true;
      encode_row(to.format, row, width, out);
      float* const back = stored.values.data() + r * width;
      decode_row(to.format, out, 0, width, back);
      double sum = 0;
      for (index_t c = 0; c < width; ++c) {
        double const error = static_cast<double>(back[c]) - static_cast<double>(row[c]);
        sum += error * error;
      }
      errors[static_cast<std::size_t>(r)] = sum;
    });
    if (lost)
      raise<FormatError>(weights_.path, ": tensor ", in_quotes(to.name), " would hold a value that ",
                         format_info(to.format).name, " cannot");
    for (double const error : errors) stored.error += error;
    stored.error = std::sqrt(stored.error);
    return stored;
  }

  /// Adds the head's tensor, the embedding's until now, where the adapters change one of the two.
  void untie(ModelConfig const& config, std::vector<TensorConversion>& conversions) {
    auto const embedding_site = std::find_if(sites_.all().begin(), sites_.all().end(),
                                             [](auto const& site) { return site.kind == SiteKind::embedding; });
    std::string const embedding = embedding_site->path + ".weight", head = config.decoder_head() + ".weight";
    for (auto const& site : sites_.all()) {
      std::string const weight = site.path + ".weight";
      if (site.layer >= 0 || (!sites_by_tensor_.contains(weight) && !saved_.contains(weight))) continue;
      if (site.kind != SiteKind::embedding && site.out != config.vocabulary) continue;  // a transform before the head
      expects(!config.is_encoder(), "graft: an adapter changes ", weight, ", and this ", config.architecture,
              " model's head and embedding are one tensor; merging would change both");
      tied_head_ = head, tied_embedding_ = embedding;
    }
    if (!unties()) return;
    auto const stored_as = [&](std::string const& name) {
      return std::find_if(conversions.begin(), conversions.end(),
                          [&](auto const& one) { return layout_.class_name(one.from.name) == name; });
    };
    auto const from = stored_as(embedding), own = stored_as(head);
    if (own != conversions.end() && from != conversions.end()) {
      expects(own->from.bytes == from->from.bytes &&
                  std::equal(own->from.data, own->from.data + own->from.bytes, from->from.data),
              "graft: the model says that its head is its embedding, but stores another ", head);
      return;
    }
    // a folder may keep the two under either name
    auto const& one = from != conversions.end() ? *from : *own;
    std::string const missing = from != conversions.end() ? head : embedding;
    std::string const stored = layout_.stored_name(missing);
    auto made = conversion(one.from, stored, one.to.format);
    created_.insert(stored);
    conversions.push_back(std::move(made));
  }

  /// Frobenius; what one lacks counts as zero.
  static double distance(std::vector<float> const& a, std::vector<float> const& b) {
    double sum = 0;
    for (std::size_t k = 0; k < std::max(a.size(), b.size()); ++k) {
      double const x = k < a.size() ? static_cast<double>(a[k]) : 0, y = k < b.size() ? static_cast<double>(b[k]) : 0;
      sum += (x - y) * (x - y);
    }
    return std::sqrt(sum);
  }

  bool any_map(index_t site, auto const& has) const {
    for (index_t stage = 0; stage < stage_count; ++stage)
      for (auto const& map : detail::chain_at(set_, static_cast<Stage>(stage), site))
        if (has(static_cast<Stage>(stage), map)) return true;
    return false;
  }
  bool brings_bias(index_t site) const {
    return any_map(site, [](Stage, auto const& map) { return map.e != nullptr; });
  }
  bool moves_bias(index_t site) const {
    return any_map(site, [](Stage stage, auto const& map) {
      return map.e != nullptr || stage == Stage::output_inner || stage == Stage::output_outer;
    });
  }

  std::vector<float> values_of(std::string const& name) const {
    if (auto const found = saved_.find(name); inward_ && found != saved_.end()) return found->second->values;
    return original(name);
  }
  std::vector<float> original(std::string const& name) const {
    auto const found = weights_.tensors.find(unties() && name == tied_head_ ? tied_embedding_ : name);
    if (found == weights_.tensors.end()) return {};
    Weight const& w = found->second;
    std::vector<float> values(static_cast<std::size_t>(w.rows * w.cols));
    for (index_t r = 0; r < w.rows; ++r) w.row(r, values.data() + r * w.cols);
    return values;
  }

  Pair const& layer_of(Touched const& touched) {
    std::string const path = touched.name.substr(0, touched.name.rfind('.'));
    if (layer_.path == path) return layer_;
    layer_ = {path, {}, {}};
    layer_.before.weight = original(path + ".weight");
    auto const& info = sites_[sites_.find(path)];
    layer_.before.rows = info.kind == SiteKind::embedding ? info.in : info.out;
    layer_.before.cols = info.kind == SiteKind::embedding ? info.out : info.in;
    layer_.before.bias = original(path + ".bias");
    layer_.after = layer_.before;
    layer_.after.weight = values_of(path + ".weight");
    layer_.after.bias = values_of(path + ".bias");
    if (touched.site < 0) return layer_;
    if (inward_)
      fold_in(set_, sites_, touched.site, layer_.after, executor_);
    else
      fold_out(set_, sites_, touched.site, layer_.after, executor_);
    return layer_;
  }

  AdapterSet<B> const& set_;
  SiteTable const& sites_;
  WeightMap const& weights_;
  ModelLayout layout_;
  bool inward_;
  Executor& executor_;
  std::map<std::string, index_t> sites_by_tensor_;
  std::map<std::string, SavedTensor const*> saved_;
  std::map<std::string, Touched> touched_;
  std::map<std::string, TensorConversion const*> conversions_;
  std::set<std::string> created_;
  std::string tied_head_, tied_embedding_;  // where the two become two tensors
  Pair layer_;
  std::vector<MergedTensor> report_;
};

}  // namespace graft
