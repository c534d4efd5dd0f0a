// SPDX-License-Identifier: Apache-2.0
// GGUF files, version 2 and 3: read through a mapping, written as version 3.
//
// Layout: "GGUF", u32 version, u64 tensor count, u64 pair count, the pairs, the tensors' names, sizes (innermost
// first), types and offsets, padding, then the data, each tensor padded to the alignment.
#pragma once

#include <graft/core/executor.hpp>
#include <graft/io/compiled.hpp>
#include <graft/io/gguf_metadata.hpp>
#include <graft/io/output_file.hpp>
#include <graft/io/tensor_file.hpp>

#if GRAFT_FILES_ARE_HERE
#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/core/types.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/gguf_records.hpp>
#include <graft/io/mapped_file.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>
#endif

#include <filesystem>
#include <string>
#include <vector>

namespace graft {

/// What a GGUF file holds. Views obtained from the metadata live as long as `tensors` or its storage.
struct Gguf {
  GgufMetadata metadata;
  TensorFile tensors;
};

/// Whether the file exists and begins as a GGUF file does.
GRAFT_FILES bool is_gguf(const std::filesystem::path& path);

namespace detail {
/// The files, in order, of the model of which `path` is one, alone or beside others. FormatError for one that is not
/// there.
GRAFT_FILES std::vector<std::string> gguf_parts(const std::filesystem::path& path);
}  // namespace detail

/// Metadata and tensors of a GGUF file, tensors in file order and their sizes outermost first. The layout must be the
/// one ggml accepts. Of a model cut into several files ("x-00001-of-00003.gguf") any one stands for all, which must lie
/// beside it. FormatError names the file and the key or tensor that is not as the format demands.
GRAFT_FILES Gguf read_gguf(const std::filesystem::path& path);

/// Writes version 3, pairs and tensors in the order given. ContractError for what the format or llama.cpp cannot hold:
/// U8 and BOOL, more than 4 dimensions or none, empty tensors, names over 63 bytes or twice, an odd alignment.
/// `put_data` writes the bytes of each tensor, as many as it says, so that they need not be in memory together.
GRAFT_FILES void write_gguf(const std::filesystem::path& path, const GgufMetadata& metadata,
                            const std::vector<TensorInfo>& tensors,
                            FunctionRef<void(const TensorInfo&, OutputFile&)> put_data);
/// As above, with the bytes that the tensors point to.
GRAFT_FILES void write_gguf(const std::filesystem::path& path, const GgufMetadata& metadata,
                            const std::vector<TensorInfo>& tensors);

#if GRAFT_FILES_ARE_HERE
GRAFT_FILES bool is_gguf(const std::filesystem::path& path) {
  std::error_code ignored;  // no: whoever then reads the file learns why
  return std::filesystem::is_regular_file(path, ignored) && MappedFile::open(path)->characters().substr(0, 4) == "GGUF";
}

namespace detail {

/// One file on its own, be it a part of a model or all of it.
inline Gguf read_gguf_file(const std::filesystem::path& path) {
  auto const file = MappedFile::open(path);
  GgufCursor cursor(*file);
  if (file->characters().substr(0, 4) != "GGUF") cursor.fail("is not a GGUF file: it does not begin with \"GGUF\"");
  cursor.bytes(4, "the header", {});
  auto const version = cursor.number<std::uint32_t>("the header");
  if ((version & 0xffff) == 0) cursor.fail("is a big-endian GGUF file; only little-endian ones are supported");
  if (version != 2 && version != 3) cursor.fail("is GGUF version ", version, ", expected 2 or 3");
  auto const tensor_count = cursor.count(32, "tensors");  // empty name, one dimension
  auto const pair_count = cursor.count(13, "metadata pairs");

  std::vector<GgufEntry> entries;
  for (std::uint64_t k = 0; k < pair_count; ++k) entries.push_back(read_gguf_entry(cursor));
  GgufMetadata metadata(file->path(), std::move(entries));
  auto const alignment = metadata.get_or<std::uint32_t>("general.alignment", gguf_default_alignment);
  if (!gguf_legal_alignment(alignment)) {
    cursor.fail("metadata key 'general.alignment' is ", alignment, ", expected a power of two up to ",
                gguf_most_alignment);
  }

  std::vector<GgufTensor> records;
  for (std::uint64_t k = 0; k < tensor_count; ++k) records.push_back(read_gguf_tensor(cursor));
  std::uint64_t const begin = gguf_padded(cursor.position(), alignment);
  std::uint64_t const size = begin < file->size() ? file->size() - begin : 0;
  std::vector<TensorInfo> tensors;
  std::uint64_t expected = 0;
  for (auto& [info, offset] : records) {
    auto const name = in_quotes(info.name);
    if (offset % alignment != 0) {
      cursor.fail("tensor ", name, " has offset ", offset, ", not a multiple of the alignment ", alignment);
    }
    if (offset != expected) cursor.fail("tensor ", name, " has offset ", offset, ", expected ", expected);
    if (offset > size || info.bytes > size - offset) {
      cursor.fail("the file is cut off: tensor ", name, " takes bytes ", offset, " to ", offset + info.bytes, " of ",
                  size, " bytes of data");
    }
    info.data = file->data() + begin + offset;
    expected = gguf_padded(offset + info.bytes, alignment);
    tensors.push_back(std::move(info));
  }
  return {std::move(metadata), TensorFile(file->path(), std::move(tensors), file)};
}

template <class... Parts>
[[noreturn]] void fail_in_file(const std::string& file, const Parts&... parts) {
  raise<FormatError>(file, ": ", parts...);
}

/// Part `number` of `count` of a model that is cut into several files is called so.
inline std::string gguf_part_suffix(std::uint32_t number, std::uint32_t count) {
  std::array<char, 48> suffix;
  std::snprintf(suffix.data(), suffix.size(), "-%05u-of-%05u.gguf", number + 1, count);
  return suffix.data();
}

/// The same where its metadata have been read.
inline std::vector<std::string> gguf_parts(const std::filesystem::path& path, const GgufMetadata& metadata) {
  auto const count = metadata.get_or<std::uint32_t>("split.count", 1);
  std::string const name = path.string();
  if (count <= 1) return {name};
  auto const own = metadata.get<std::uint32_t>("split.no");
  if (own >= count) fail_in_file(name, "claims to be part ", own + 1, " of ", count);
  std::string const suffix = gguf_part_suffix(own, count);
  if (!name.ends_with(suffix)) {
    fail_in_file(name, "is part ", own + 1, " of ", count, " of a model; its name must end with ", in_quotes(suffix),
                 " for the others to be found");
  }
  std::string const stem = name.substr(0, name.size() - suffix.size());
  std::vector<std::string> files;
  for (std::uint32_t k = 0; k < count; ++k) {
    files.push_back(stem + gguf_part_suffix(k, count));
    std::error_code ignored;
    if (!std::filesystem::exists(files.back(), ignored))
      fail_in_file(files.back(), "is missing: part ", k + 1, " of ", count, " of a model");
  }
  return files;
}

GRAFT_FILES std::vector<std::string> gguf_parts(const std::filesystem::path& path) {
  return gguf_parts(path, read_gguf_file(path).metadata);
}

/// The whole model of which `part` is one file: tensors in the order of the parts, metadata of the first.
inline Gguf join_gguf(const std::filesystem::path& path, Gguf part) {
  auto const files = gguf_parts(path, part.metadata);
  auto const own = part.metadata.get<std::uint32_t>("split.no");
  std::string const name = path.string();
  auto const count = static_cast<std::uint32_t>(files.size());
  auto const promised = part.metadata.get<std::uint64_t>("split.tensors.count");
  Gguf first;
  std::vector<TensorInfo> tensors;
  auto const storage = std::make_shared<std::vector<std::shared_ptr<const void>>>();
  for (std::uint32_t k = 0; k < count; ++k) {
    std::string const& file = files[k];
    Gguf next = k == own ? std::move(part) : read_gguf_file(file);
    auto const check = [&](const char* key, std::uint64_t expected) {
      auto const value = next.metadata.get<std::uint64_t>(key);
      if (value != expected) {
        fail_in_file(file, "metadata key ", in_quotes(key), " is ", value, ", expected ", expected, " as in ",
                     in_quotes(path.filename().string()));
      }
    };
    check("split.no", k), check("split.count", count), check("split.tensors.count", promised);
    tensors.insert(tensors.end(), next.tensors.tensors().begin(), next.tensors.tensors().end());
    storage->push_back(next.tensors.storage());
    if (k == 0) first = std::move(next);
  }
  if (tensors.size() != promised) {
    fail_in_file(name, "the ", count, " parts hold ", tensors.size(),
                 " tensors, but metadata key 'split.tensors.count' is ", promised);
  }
  std::vector<GgufEntry> entries;  // without what is true of the parts only
  for (auto const& entry : first.metadata.entries())
    if (!entry.key.starts_with("split.")) entries.push_back(entry);
  return {GgufMetadata(name, std::move(entries)), TensorFile(name, std::move(tensors), storage)};
}

/// All that stands before the tensors' bytes.
inline std::string gguf_header(const GgufMetadata& metadata, const std::vector<TensorInfo>& tensors,
                               std::uint32_t alignment) {
  std::string header = "GGUF";
  auto const put = [&](auto number) { header.append(reinterpret_cast<const char*>(&number), sizeof number); };
  auto const put_string = [&](std::string_view value) {
    put(static_cast<std::uint64_t>(value.size()));
    header += value;
  };
  put(std::uint32_t{3});
  put(static_cast<std::uint64_t>(tensors.size()));
  put(static_cast<std::uint64_t>(metadata.entries().size()));
  for (auto const& entry : metadata.entries()) {
    put_string(entry.key);
    put(static_cast<std::uint32_t>(entry.array ? GgufType::array : entry.element));
    if (entry.array) put(static_cast<std::uint32_t>(entry.element)), put(entry.count);
    header += entry.values;
  }
  std::set<std::string_view> names;
  std::uint64_t offset = 0;
  for (auto const& tensor : tensors) {
    auto const name = in_quotes(tensor.name);
    auto const type =
        std::find_if(ggml_types.begin(), ggml_types.end(), [&](auto& t) { return t.format == tensor.format; });
    expects(type != ggml_types.end(), "tensor ", name, " of format ", format_info(tensor.format).name,
            " cannot be written to GGUF");
    expects(!tensor.shape.empty() && tensor.shape.size() <= gguf_most_dimensions && tensor.bytes > 0, "tensor ", name,
            " of shape ", shape_text(tensor.shape), " cannot be written to GGUF");
    expects(tensor.name.size() <= gguf_longest_name && valid_utf8(tensor.name), "tensor name ", name,
            " is not UTF-8 or longer than the ", gguf_longest_name, " bytes GGUF readers take");
    expects(names.insert(tensor.name).second, "two tensors are named ", name);
    auto const bytes = stored_bytes(tensor.format, tensor.shape);
    expects(bytes && *bytes == tensor.bytes, "tensor ", name, " of shape ", shape_text(tensor.shape), " and format ",
            type->name, " has ", tensor.bytes, " bytes");
    put_string(tensor.name);
    put(static_cast<std::uint32_t>(tensor.shape.size()));
    for (auto size = tensor.shape.rbegin(); size != tensor.shape.rend(); ++size) put(*size);
    put(type->number);
    put(offset);
    offset = gguf_padded(offset + tensor.bytes, alignment);
  }
  header.resize(gguf_padded(header.size(), alignment), '\0');
  return header;
}

}  // namespace detail

GRAFT_FILES Gguf read_gguf(const std::filesystem::path& path) {
  Gguf file = detail::read_gguf_file(path);
  bool const parts = file.metadata.get_or<std::uint32_t>("split.count", 1) > 1;
  return parts ? detail::join_gguf(path, std::move(file)) : std::move(file);
}

GRAFT_FILES void write_gguf(const std::filesystem::path& path, const GgufMetadata& metadata,
                            const std::vector<TensorInfo>& tensors,
                            FunctionRef<void(const TensorInfo&, OutputFile&)> put_data) {
  auto const alignment = metadata.get_or<std::uint32_t>("general.alignment", detail::gguf_default_alignment);
  expects(detail::gguf_legal_alignment(alignment), "a GGUF alignment is a power of two up to ",
          detail::gguf_most_alignment, ", not ", alignment);
  std::string const header = detail::gguf_header(metadata, tensors, alignment);
  OutputFile file(path);
  file.write(header);
  std::string const padding(alignment, '\0');
  for (auto const& tensor : tensors) {
    put_data(tensor, file);
    file.write(padding.data(), detail::gguf_padded(tensor.bytes, alignment) - tensor.bytes);
  }
  file.commit();
}
GRAFT_FILES void write_gguf(const std::filesystem::path& path, const GgufMetadata& metadata,
                            const std::vector<TensorInfo>& tensors) {
  write_gguf(path, metadata, tensors,
             [](const TensorInfo& tensor, OutputFile& file) { file.write(tensor.data, tensor.bytes); });
}
#endif

}  // namespace graft
