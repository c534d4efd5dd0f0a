// SPDX-License-Identifier: Apache-2.0
// Merged and unmerged models as files: a GGUF file from a GGUF file, a model folder from a folder.
#pragma once

#include <graft/io/gguf_model.hpp>
#include <graft/io/hf_model.hpp>
#include <graft/io/merge_model.hpp>
#include <graft/io/output_folder.hpp>

#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace graft {

/// What is folded into which model, or taken out of it.
template <class B>
struct MergeRequest {
  AdapterSet<B> const& set;
  SiteTable const& sites;
  ModelConfig const& config;
  WeightMap const& weights;
  Executor& executor;
  bool inward = true;          ///< false: taken out by the inverse formula
  std::optional<Format> type;  ///< of matrices; none: as they are
  MergeRecord record;          ///< goes into the file
  std::filesystem::path undo;  ///< written when not empty
  OnTensor on_tensor{};        ///< called with each tensor before it is written
};

struct MergeOutcome {
  std::vector<MergedTensor> tensors;
  std::size_t undo_bytes = 0;
  std::vector<std::string> notes;
};

namespace detail {

/// The metadata with another record, or none where it is empty, and without some keys.
inline GgufMetadata with_record(GgufMetadata const& metadata, std::string const& record,
                                std::set<std::string> const& dropped = {}) {
  std::vector<GgufEntry> entries;
  for (auto const& entry : metadata.entries())
    if (entry.key != merge_key && !dropped.contains(entry.key)) entries.push_back(entry);
  GgufMetadata result({}, std::move(entries));
  if (!record.empty()) result.set(merge_key, record);
  return result;
}
inline std::map<std::string, std::string> with_record(std::map<std::string, std::string> metadata,
                                                      std::string const& record) {
  metadata["format"] = "pt";
  if (record.empty())
    metadata.erase(merge_key);
  else
    metadata[merge_key] = record;
  return metadata;
}

/// Writes the tensors of a merge in their order through `file`, and the undo file beside.
template <class B>
class MergeRun {
 public:
  MergeRun(MergeRequest<B> const& request, ModelLayout const& layout, std::vector<TensorConversion>& conversions)
      : request_(request),
        conversions_(conversions),
        merged_(request.set, request.sites, request.config, request.weights, layout, conversions, request.inward,
                request.executor),
        list_(conversions) {}

  /// To be announced.
  std::vector<TensorInfo> const& tensors() const { return list_.tensors; }

  void put(std::filesystem::path const& path, TensorInfo const& tensor, OutputFile& file) {
    if (request_.on_tensor) request_.on_tensor(tensor);
    if (!merged_.touches(tensor.name)) return list_.put(path, tensor, file, request_.executor);
    auto const bytes = merged_.encode(tensor.name);
    file.write(bytes.data(), bytes.size());
  }
  /// Keeps what the written file no longer says.
  std::size_t write_undo_file(Undo undo) const {
    if (request_.undo.empty()) return 0;
    undo.record_sha256 = sha256(request_.record.json());
    undo.previous = request_.record.previous;
    undo.created = merged_.created();
    for (auto const& one : conversions_)
      if (!undo.created.contains(one.to.name) && (merged_.touches(one.to.name) || one.to.format != one.from.format))
        undo.originals.emplace(one.from.name, one.from);
    return write_undo(request_.undo, undo);
  }
  std::vector<MergedTensor> const& report() const { return merged_.report(); }
  bool unties() const { return merged_.unties(); }

 private:
  MergeRequest<B> const& request_;
  std::vector<TensorConversion>& conversions_;
  MergedWeights<B> merged_;
  ConversionList list_;  // of what merged_ has added too
};

inline std::string record_after(auto const& request) {
  return request.inward ? request.record.json() : request.record.previous;
}

}  // namespace detail

/// A GGUF file of the model with the adapters merged in (or taken out); the undo file first, so that no merged file is
/// without the one it was promised.
template <class B>
MergeOutcome merge_gguf(MergeRequest<B> const& request, Gguf const& file, std::filesystem::path const& out) {
  auto model = gguf_model(file, request.type);
  if (!request.type) model.metadata = file.metadata;
  ModelLayout const layout(request.config, file.tensors, true);
  detail::MergeRun<B> run(request, layout, model.tensors);
  MergeOutcome outcome;
  outcome.notes = model.notes;
  Undo undo;
  undo.has_file_type = file.metadata.contains("general.file_type");
  undo.file_type = file.metadata.get_or<std::uint32_t>("general.file_type", 0);
  for (auto const& entry : model.metadata.entries())
    if (!file.metadata.contains(entry.key)) undo.added_keys.insert(entry.key);
  outcome.undo_bytes = run.write_undo_file(std::move(undo));
  write_gguf(out, detail::with_record(model.metadata, detail::record_after(request)), run.tensors(),
             [&](TensorInfo const& tensor, OutputFile& to) { run.put(out, tensor, to); });
  outcome.tensors = run.report();
  return outcome;
}

/// config.json and model.safetensors of the merged model into `folder`; `document` is the model's config.json.
template <class B>
MergeOutcome merge_hf(MergeRequest<B> const& request, nlohmann::ordered_json const& document, TensorFile const& file,
                      OutputFolder const& folder) {
  auto model = hf_model(document, file, request.type);
  if (!request.type) model.config = document;
  ModelLayout const layout(request.config, file, false);
  detail::MergeRun<B> run(request, layout, model.tensors);
  if (run.unties()) model.config["tie_word_embeddings"] = false;
  MergeOutcome outcome;
  outcome.notes = model.notes;
  Undo undo;
  undo.config = document.dump(2) + "\n";
  outcome.undo_bytes = run.write_undo_file(std::move(undo));
  auto const path = folder / "model.safetensors";
  write_safetensors(path, run.tensors(), detail::with_record(file.metadata(), detail::record_after(request)),
                    [&](TensorInfo const& tensor, OutputFile& to) { run.put(path, tensor, to); });
  OutputFile config(folder / "config.json");
  config.write(model.config.dump(2) + "\n");
  config.commit();
  outcome.tensors = run.report();
  return outcome;
}

/// The metadata of a merged GGUF file as they were.
inline GgufMetadata unmerged_metadata(GgufMetadata const& merged, Undo const& undo) {
  auto metadata = detail::with_record(merged, undo.previous, undo.added_keys);
  if (undo.has_file_type) metadata.set("general.file_type", undo.file_type);
  return metadata;
}

/// The tensors of a merged file as they were: from the undo file, or from the original. They point into both.
inline std::vector<TensorInfo> unmerged_tensors(TensorFile const& merged, Undo const& undo) {
  std::vector<TensorInfo> result;
  std::size_t used = 0;
  for (auto const& tensor : merged.tensors()) {
    if (undo.created.contains(tensor.name)) continue;
    auto const found = undo.originals.find(tensor.name);
    used += found != undo.originals.end();
    result.push_back(found == undo.originals.end() ? tensor : found->second);
  }
  if (used != undo.originals.size())
    raise<FormatError>(merged.path(), ": lacks tensors that ", undo.file.path(), " would put back");
  return result;
}

/// The original's tensors as an undo of everything.
inline Undo undo_from_original(TensorFile const& merged, TensorFile const& original, MergeRecord const& record) {
  Undo undo;
  undo.previous = record.previous;
  undo.file = original;
  for (auto const& tensor : original.tensors()) undo.originals.emplace(tensor.name, tensor);
  for (auto const& tensor : merged.tensors())
    if (!undo.originals.contains(tensor.name)) undo.created.insert(tensor.name);
  return undo;
}

}  // namespace graft
