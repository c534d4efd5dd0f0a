// SPDX-License-Identifier: Apache-2.0
// What a merged model says of its making, and the file that undoes it.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/gguf.hpp>
#include <graft/io/mapped_file.hpp>
#include <graft/io/safetensors.hpp>
#include <graft/io/sha256.hpp>
#include <graft/io/tensor_file.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

/// The key of the record in a GGUF file's metadata, and in a safetensors file's.
inline constexpr char merge_key[] = "graft.merge";

/// Provenance of a merged model.
struct MergeRecord {
  struct Adapter {
    std::string name, sha256;
    double weight = 1;
  };
  std::string base_sha256;
  std::vector<Adapter> adapters;
  std::string previous;  ///< the base's own record, when it was merged already

  std::string json() const {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (auto const& adapter : adapters)
      list.push_back({{"name", adapter.name}, {"weight", adapter.weight}, {"sha256", adapter.sha256}});
    nlohmann::ordered_json record = {{"base_sha256", base_sha256}, {"adapters", list}};
    if (!previous.empty()) record["previous"] = previous;
    return record.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }
};

/// The record of a merged model. FormatError naming `path` when it is none.
inline MergeRecord parse_merge_record(std::string const& path, std::string_view characters) {
  auto const json = nlohmann::json::parse(characters, nullptr, false);
  auto const fail = [&] { raise<FormatError>(path, ": its metadata ", merge_key, " is no record of a merge"); };
  auto const string = [&](nlohmann::json const& object, char const* key) {
    auto const found = object.find(key);
    if (found == object.end() || !found->is_string()) fail();
    return found->get<std::string>();
  };
  if (!json.is_object() || !json.contains("adapters") || !json.at("adapters").is_array()) fail();
  MergeRecord record;
  record.base_sha256 = string(json, "base_sha256");
  if (json.contains("previous")) record.previous = string(json, "previous");
  for (auto const& adapter : json.at("adapters")) {
    if (!adapter.is_object() || !adapter.contains("weight") || !adapter.at("weight").is_number()) fail();
    record.adapters.push_back({string(adapter, "name"), string(adapter, "sha256"), adapter.at("weight").get<double>()});
  }
  return record;
}

/// SHA-256 of a file, of all parts of a GGUF file that is one of several, or of a folder's weights and configuration,
/// one after the other by name: config.json and *.safetensors of a model, adapter_config.json and
/// adapter_model.safetensors of an adapter. A folder may be named by its index of shards (.json).
inline std::string content_sha256(std::filesystem::path const& path) {
  namespace fs = std::filesystem;
  std::vector<fs::path> files;
  bool const folder = fs::is_directory(path), index = path.extension() == ".json";
  if (folder || index) {
    for (auto const& entry : fs::directory_iterator(folder ? path : path.parent_path())) {
      auto const name = entry.path().filename().string();
      if (entry.path().extension() == ".safetensors" || name == "config.json" || name == "adapter_config.json")
        files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
  } else if (MappedFile::open(path)->characters().starts_with("GGUF")) {
    for (auto const& part : detail::gguf_parts(path)) files.push_back(part);
  } else {
    files.push_back(path);
  }
  Sha256 hash;
  for (auto const& file : files) hash.update(MappedFile::open(file)->characters());
  return hash.hex();
}

/// What unmerging puts back.
struct Undo {
  std::string record_sha256;                    ///< of the record the merged model has: the two belong together
  std::string previous;                         ///< the record the model had before
  std::map<std::string, TensorInfo> originals;  ///< by name; they point into `file`
  std::set<std::string> created;                ///< tensors to be dropped
  std::set<std::string> added_keys;             ///< metadata of a GGUF file to be dropped
  std::uint32_t file_type = 0;                  ///< general.file_type of a GGUF file
  bool has_file_type = false;
  std::string config;  ///< config.json of a model folder
  TensorFile file;
};

namespace detail {

/// "Q8_0 576 1536": how an undo file says what a tensor's bytes are.
inline std::string stored_as(TensorInfo const& tensor) {
  std::string said = format_info(tensor.format).name;
  for (index_t const size : tensor.shape) said += text(' ', size);
  return said;
}
/// From what stored_as said to format and shape; false where it is something else.
inline bool read_stored_as(std::string_view said, TensorInfo& tensor) {
  auto const word = said.substr(0, said.find(' '));
  bool known = false;
  for (int k = 0; k < format_count; ++k)
    if (word == format_info(static_cast<Format>(k)).name) tensor.format = static_cast<Format>(k), known = true;
  said.remove_prefix(word.size());
  while (known && !said.empty() && tensor.shape.size() < 8) {
    said.remove_prefix(1);
    index_t size = -1;
    auto const [end, error] = std::from_chars(said.data(), said.data() + said.size(), size);
    if (error != std::errc{} || size < 0) return false;
    tensor.shape.push_back(size);
    said.remove_prefix(static_cast<std::size_t>(end - said.data()));
  }
  return known;
}

}  // namespace detail

/// Writes the exact stored bytes of tensors that merging changes, with what else it takes to undo it. Returns the bytes
/// of the file.
inline std::size_t write_undo(std::filesystem::path const& path, Undo const& undo) {
  std::map<std::string, std::string> metadata = {{"graft.undo", undo.record_sha256}};
  if (!undo.previous.empty()) metadata["graft.previous"] = undo.previous;
  if (undo.has_file_type) metadata["general.file_type"] = text(undo.file_type);
  if (!undo.config.empty()) metadata["config.json"] = undo.config;
  for (auto const& name : undo.created) metadata["created." + name] = "";
  for (auto const& key : undo.added_keys) metadata["added." + key] = "";
  std::vector<TensorInfo> tensors;
  for (auto const& [name, tensor] : undo.originals) {
    metadata["tensor." + name] = detail::stored_as(tensor);
    tensors.push_back({name, Format::u8, {static_cast<index_t>(tensor.bytes)}, tensor.data, tensor.bytes});
  }
  write_safetensors(path, tensors, metadata);
  return static_cast<std::size_t>(std::filesystem::file_size(path));
}

/// FormatError when it is no undo file, or one whose tensors are not as long as they say.
inline Undo read_undo(std::filesystem::path const& path) {
  Undo undo;
  undo.file = read_safetensors(path);
  auto const& metadata = undo.file.metadata();
  auto const fail = [&](auto const&... parts) { raise<FormatError>(undo.file.path(), ": ", parts...); };
  auto const id = metadata.find("graft.undo");
  if (id == metadata.end()) fail("is not an undo file; it has no metadata graft.undo");
  undo.record_sha256 = id->second;
  if (auto const found = metadata.find("graft.previous"); found != metadata.end()) undo.previous = found->second;
  if (auto const found = metadata.find("general.file_type"); found != metadata.end()) {
    auto const* const end = found->second.data() + found->second.size();
    undo.has_file_type = std::from_chars(found->second.data(), end, undo.file_type).ptr == end;
    if (!undo.has_file_type) fail("metadata general.file_type is ", in_quotes(found->second), ", expected a number");
  }
  if (auto const found = metadata.find("config.json"); found != metadata.end()) undo.config = found->second;
  for (auto const& [key, value] : metadata)
    if (key.starts_with("created."))
      undo.created.insert(key.substr(8));
    else if (key.starts_with("added."))
      undo.added_keys.insert(key.substr(6));
  for (auto const& tensor : undo.file.tensors()) {
    auto const found = metadata.find("tensor." + tensor.name);
    if (found == metadata.end())
      fail("tensor ", in_quotes(tensor.name), " has no metadata saying its format and shape");
    TensorInfo original{tensor.name, Format::u8, {}, tensor.data, tensor.bytes};
    if (!detail::read_stored_as(found->second, original))
      fail("tensor ", in_quotes(tensor.name), " is said to be ", found->second);
    auto const bytes = stored_bytes(original.format, original.shape);
    if (tensor.format != Format::u8 || !bytes || *bytes != tensor.bytes)
      fail("tensor ", in_quotes(tensor.name), " has ", tensor.bytes, " bytes and is said to be ", found->second);
    undo.originals.emplace(tensor.name, std::move(original));
  }
  return undo;
}

}  // namespace graft
