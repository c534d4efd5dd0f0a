// SPDX-License-Identifier: Apache-2.0
// safetensors files, single and sharded: read through a mapping, written deterministically.
//
// Layout: u64 header length, JSON header {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...} that may hold
// string pairs under "__metadata__", then the tensors' bytes, without holes.
#pragma once

#include <graft/core/executor.hpp>
#include <graft/io/compiled.hpp>
#include <graft/io/output_file.hpp>
#include <graft/io/tensor_file.hpp>

#if GRAFT_FILES_ARE_HERE
#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/json.hpp>
#include <graft/io/mapped_file.hpp>
#include <graft/io/safetensors_header.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <system_error>
#include <utility>
#endif

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace graft {

/// The tensors of one safetensors file in the order of their bytes, and its metadata pairs. FormatError names the file
/// and the tensor that is not as the format demands.
GRAFT_FILES TensorFile read_safetensors(const std::filesystem::path& path);

/// The tensors of a checkpoint that may be cut into several files: `path` is a `*.safetensors.index.json`, or a folder
/// with `model.safetensors` or `model.safetensors.index.json`. FormatError when a shard, or a tensor the index
/// promises, is missing.
GRAFT_FILES TensorFile read_sharded_safetensors(const std::filesystem::path& path);

/// Writes the tensors, by falling alignment and then by name whatever order they come in, so that equal contents give
/// equal bytes: those the Python package writes. ContractError for what the format cannot hold: block formats, a name
/// twice, the name "__metadata__", text that is not UTF-8.
/// `put_data` writes the bytes of each tensor, as many as it says, so that they need not be in memory together.
GRAFT_FILES void write_safetensors(const std::filesystem::path& path, std::vector<TensorInfo> tensors,
                                   const std::map<std::string, std::string>& metadata,
                                   FunctionRef<void(const TensorInfo&, OutputFile&)> put_data);
/// As above, with the bytes that the tensors point to.
GRAFT_FILES void write_safetensors(const std::filesystem::path& path, std::vector<TensorInfo> tensors,
                                   const std::map<std::string, std::string>& metadata = {});

#if GRAFT_FILES_ARE_HERE
GRAFT_FILES TensorFile read_safetensors(const std::filesystem::path& path) {
  auto const file = MappedFile::open(path);
  auto header = detail::read_safetensors_header(*file);
  auto const fail = [&](auto const&... parts) { raise<FormatError>(file->path(), ": ", parts...); };
  auto const data = file->bytes().subspan(header.bytes);

  // Sorted by offset, the tensors must tile the data: nothing overlaps, nothing is hidden between or behind them.
  std::stable_sort(header.tensors.begin(), header.tensors.end(),
                   [](auto const& a, auto const& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  std::vector<TensorInfo> tensors;
  tensors.reserve(header.tensors.size());
  std::uint64_t expected = 0;
  for (auto& entry : header.tensors) {
    auto const name = in_quotes(entry.name);
    if (entry.begin > entry.end || entry.end > data.size()) {
      fail("tensor ", name, " has data_offsets [", entry.begin, ", ", entry.end, "] in ", data.size(),
           " bytes of data");
    }
    if (entry.begin != expected) {
      fail("tensor ", name, " begins at byte ", entry.begin, " of the data, expected ", expected,
           entry.begin < expected ? ": it overlaps another" : ": there is a hole before it");
    }
    auto const bytes = stored_bytes(entry.format, entry.shape);
    if (!bytes || *bytes != entry.end - entry.begin) {
      fail("tensor ", name, " has ", entry.end - entry.begin, " bytes, but shape ", shape_text(entry.shape), " of ",
           format_info(entry.format).name, " takes ", bytes ? std::to_string(*bytes) : "more than any file");
    }
    tensors.push_back({std::move(entry.name), entry.format, std::move(entry.shape), data.data() + entry.begin, *bytes});
    expected = entry.end;
  }
  if (expected != data.size()) fail("the tensors end at byte ", expected, " of ", data.size(), " bytes of data");
  return TensorFile(file->path(), std::move(tensors), file, std::move(header.metadata));
}

GRAFT_FILES TensorFile read_sharded_safetensors(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  fs::path index = path;
  std::error_code ignored;  // what cannot be examined cannot be opened either, and is refused there
  if (fs::is_directory(path, ignored)) {
    if (fs::path const single = path / "model.safetensors"; fs::exists(single, ignored))
      return read_safetensors(single);
    index = path / "model.safetensors.index.json";
    if (!fs::exists(index, ignored)) {
      raise<FormatError>(path.string(), ": has neither model.safetensors nor model.safetensors.index.json");
    }
  }
  auto const fail = [&](auto const&... parts) { raise<FormatError>(index.string(), ": ", parts...); };
  auto const document = read_json(index, std::size_t{64} << 20);
  if (!document.is_object() || !document.contains("weight_map") || !document["weight_map"].is_object()) {
    fail("has no object \"weight_map\"");
  }
  std::map<std::string, std::vector<std::string>> names_in_shard;
  for (auto const& [name, shard] : document["weight_map"].items()) {
    if (!shard.is_string()) fail("tensor ", in_quotes(name), " has no file name");
    auto const& file = shard.template get_ref<const std::string&>();
    if (file.empty() || fs::path(file).filename() != file || file == "..") {
      fail("tensor ", in_quotes(name), " is said to lie in ", in_quotes(file), ", which is not a file of this folder");
    }
    names_in_shard[file].push_back(name);
  }

  std::vector<TensorInfo> tensors;
  auto const storage = std::make_shared<std::vector<std::shared_ptr<const void>>>();
  std::map<std::string, std::string> metadata;
  for (auto const& [name, promised] : names_in_shard) {
    auto const shard = read_safetensors(index.parent_path() / name);
    for (auto const& tensor : promised) shard.at(tensor);
    tensors.insert(tensors.end(), shard.tensors().begin(), shard.tensors().end());
    storage->push_back(shard.storage());
    metadata.insert(shard.metadata().begin(), shard.metadata().end());
  }
  return TensorFile(index.string(), std::move(tensors), storage, std::move(metadata));
}

GRAFT_FILES void write_safetensors(const std::filesystem::path& path, std::vector<TensorInfo> tensors,
                                   const std::map<std::string, std::string>& metadata,
                                   FunctionRef<void(const TensorInfo&, OutputFile&)> put_data) {
  std::string const header = detail::safetensors_header_text(tensors, metadata);
  OutputFile file(path);
  std::uint64_t const length = header.size();
  file.write(&length, sizeof length);
  file.write(header);
  for (auto const& tensor : tensors) put_data(tensor, file);
  file.commit();
}

GRAFT_FILES void write_safetensors(const std::filesystem::path& path, std::vector<TensorInfo> tensors,
                                   const std::map<std::string, std::string>& metadata) {
  write_safetensors(path, std::move(tensors), metadata,
                    [](const TensorInfo& tensor, OutputFile& file) { file.write(tensor.data, tensor.bytes); });
}
#endif

}  // namespace graft
