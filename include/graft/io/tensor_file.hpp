// SPDX-License-Identifier: Apache-2.0
// Named tensors that lie in mapped files: what every reader returns and every writer takes.
#pragma once

#include <graft/backend/weight.hpp>
#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/core/scalar.hpp>
#include <graft/core/types.hpp>
#include <graft/io/checked.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace graft {

/// One stored tensor; the bytes belong to somebody else.
struct TensorInfo {
  std::string name;
  Format format = Format::f32;
  std::vector<index_t> shape;  ///< outermost first, [out, in] for a linear layer; empty for a scalar
  const std::byte* data = nullptr;
  std::size_t bytes = 0;

  /// Values in it; 0 where any size is 0, however large the others.
  index_t elements() const {
    index_t product = 1;
    for (index_t const size : shape) {
      if (size == 0) return 0;
    }
    for (index_t const size : shape) product *= size;
    return product;
  }
};

/// A tensor for a writer from numbers in memory, which must outlive it.
template <class T>
TensorInfo tensor_info(std::string name, std::vector<index_t> shape, const T* data) {
  constexpr Format format = std::is_same_v<T, float>          ? Format::f32
                            : std::is_same_v<T, double>       ? Format::f64
                            : std::is_same_v<T, f16>          ? Format::f16
                            : std::is_same_v<T, bf16>         ? Format::bf16
                            : std::is_same_v<T, std::int8_t>  ? Format::i8
                            : std::is_same_v<T, std::int16_t> ? Format::i16
                            : std::is_same_v<T, std::int32_t> ? Format::i32
                            : std::is_same_v<T, std::int64_t> ? Format::i64
                            : std::is_same_v<T, std::uint8_t> ? Format::u8
                                                              : Format::boolean;
  static_assert(format != Format::boolean || std::is_same_v<T, bool>, "graft: no tensor format has this element type");
  TensorInfo info{std::move(name), format, std::move(shape), reinterpret_cast<const std::byte*>(data), 0};
  info.bytes = static_cast<std::size_t>(info.elements()) * sizeof(T);
  return info;
}

/// The tensors of a model or adapter, in file order, with the files they lie in kept mapped.
class TensorFile {
 public:
  TensorFile() = default;

  /// `storage` owns what the tensors point into. FormatError when two tensors share a name.
  TensorFile(std::string path, std::vector<TensorInfo> tensors, std::shared_ptr<const void> storage,
             std::map<std::string, std::string> metadata = {})
      : path_(std::move(path)),
        tensors_(std::move(tensors)),
        metadata_(std::move(metadata)),
        by_name_(tensors_.size()) {
    storage_.push_back(std::move(storage));
    std::iota(by_name_.begin(), by_name_.end(), std::size_t{0});
    std::sort(by_name_.begin(), by_name_.end(),
              [this](std::size_t a, std::size_t b) { return tensors_[a].name < tensors_[b].name; });
    for (std::size_t k = 1; k < by_name_.size(); ++k) {
      std::string const& name = tensors_[by_name_[k]].name;
      if (name == tensors_[by_name_[k - 1]].name) fail("tensor ", in_quotes(name), " occurs twice");
    }
    align();
  }

  const std::string& path() const { return path_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  /// The string pairs of a safetensors header; GGUF's typed metadata stand beside the tensors instead.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// Null when there is no tensor of this name.
  const TensorInfo* find(std::string_view name) const {
    auto const found = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                        [this](std::size_t k, std::string_view n) { return tensors_[k].name < n; });
    return found != by_name_.end() && tensors_[*found].name == name ? &tensors_[*found] : nullptr;
  }
  /// FormatError with path and name when there is no such tensor.
  const TensorInfo& at(std::string_view name) const {
    const TensorInfo* const tensor = find(name);
    if (tensor == nullptr) fail("tensor ", in_quotes(name), " is missing");
    return *tensor;
  }
  /// As `at`, and FormatError when the shape is another.
  const TensorInfo& at(std::string_view name, const std::vector<index_t>& shape) const {
    const TensorInfo& tensor = at(name);
    if (tensor.shape != shape) {
      fail("tensor ", in_quotes(name), " has shape ", shape_text(tensor.shape), ", expected ", shape_text(shape));
    }
    return tensor;
  }

  /// Keeps the tensors' bytes alive for as long as it is held, without the TensorFile.
  std::shared_ptr<const void> storage() const {
    return std::make_shared<const std::vector<std::shared_ptr<const void>>>(storage_);
  }

 private:
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    raise<FormatError>(path_, ": ", parts...);
  }

  // A legal file may put numbers at odd addresses (safetensors without header padding did); those tensors are copied,
  // so that whoever holds a TensorInfo may read its data as what it is.
  void align() {
    std::size_t total = 0;
    auto const misplaced = [](const TensorInfo& tensor) {
      FormatInfo const info = format_info(tensor.format);
      auto const alignment = static_cast<std::uintptr_t>(info.block == 1 ? info.bytes : 2);  // blocks open with a half
      return tensor.bytes > 0 && reinterpret_cast<std::uintptr_t>(tensor.data) % alignment != 0;
    };
    for (auto const& tensor : tensors_) total += misplaced(tensor) ? (tensor.bytes + 7) / 8 : 0;
    if (total == 0) return;
    std::shared_ptr<std::uint64_t[]> const copy(new std::uint64_t[total]);
    std::uint64_t* to = copy.get();
    for (auto& tensor : tensors_) {
      if (!misplaced(tensor)) continue;
      std::memcpy(to, tensor.data, tensor.bytes);
      tensor.data = reinterpret_cast<const std::byte*>(to);
      to += (tensor.bytes + 7) / 8;
    }
    storage_.push_back(copy);
  }

  std::string path_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
  std::vector<std::size_t> by_name_;
  std::vector<std::shared_ptr<const void>> storage_;
};

namespace detail {

/// The tensor as a weight. FormatError, naming the file, where it has no real numbers or not 1 or 2 dimensions.
inline Weight as_weight(std::string const& path, TensorInfo const& tensor) {
  if (!format_info(tensor.format).weight)
    raise<FormatError>(path, ": tensor ", in_quotes(tensor.name), " of type ", format_info(tensor.format).name,
                       " cannot be a weight");
  if (tensor.shape.empty() || tensor.shape.size() > 2)
    raise<FormatError>(path, ": tensor ", in_quotes(tensor.name), " has ", tensor.shape.size(),
                       " dimensions, expected 1 or 2");
  bool const vector = tensor.shape.size() == 1;
  return {tensor.data, tensor.format, vector ? 1 : tensor.shape[0], tensor.shape.back(), nullptr};
}

}  // namespace detail

}  // namespace graft
