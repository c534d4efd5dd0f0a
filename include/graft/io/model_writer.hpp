// SPDX-License-Identifier: Apache-2.0
// Tensors on their way from one model file to another: which format each is to have, and how its rows get there
// without the model ever being in memory.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/executor.hpp>
#include <graft/core/format.hpp>
#include <graft/io/gguf.hpp>
#include <graft/io/safetensors.hpp>
#include <graft/io/tensor_file.hpp>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace graft {

/// What a tensor is for, as far as its format depends on it.
enum class TensorRole { matrix, head, learned_positions };

/// One tensor as it lies and as it is to be written.
struct TensorConversion {
  TensorInfo from;
  TensorInfo to;                        ///< name, format, shape and bytes; no data
  std::vector<std::int32_t> row_order;  ///< row k is stored row row_order[k]; of a vector, element k. Empty: in order
  bool transposed = false;
};

/// Chooses formats as llama-quantize does, and remembers where they are not the one asked for.
class FormatChoice {
 public:
  /// `type`: the format of matrices, or none to keep every value. Vectors of a GGUF file, and of any file when a type
  /// is given, are F32. ContractError for a block format outside of GGUF.
  FormatChoice(std::optional<Format> type, bool gguf) : type_(type), gguf_(gguf) {
    expects(gguf || !type || format_info(*type).block == 1, "safetensors files cannot hold ",
            type ? format_info(*type).name : "", "; F32, F16 and BF16 they can");
  }

  Format operator()(TensorInfo const& tensor, TensorRole role) {
    FormatInfo const stored = format_info(tensor.format);
    if (!stored.weight || tensor.shape.empty()) return tensor.format;
    bool const vector = tensor.shape.size() == 1;
    // ggml adds these to f32 activations
    if (vector ? gguf_ || type_ : gguf_ && role == TensorRole::learned_positions) return Format::f32;
    if (!type_) return gguf_ ? (tensor.format == Format::f64 ? Format::f32 : tensor.format) : unblocked(tensor.format);
    index_t const cols = tensor.shape.back();
    Format const wanted = role == TensorRole::head ? for_head(*type_, cols) : *type_, format = fitting(wanted, cols);
    char const *const name = format_info(format).name, *const asked = format_info(*type_).name;
    if (format != wanted)
      note(tensor, text(name, ", not ", asked, ", because rows have ", cols, " values"));
    else if (format != *type_)
      note(tensor, text(name, ", not ", asked, ", because it makes the logits"));
    if (stored.block > 1 && format_info(format).block > 1 && format != tensor.format)
      note(tensor, text("quantised a second time, ", name, " from ", stored.name));
    return format;
  }

  /// A line for each reason to have chosen another format, or to have quantised what was quantised.
  std::vector<std::string> notes() const {
    std::vector<std::string> lines;
    for (auto const& [reason, tensors] : reasons_)
      lines.push_back(tensors.count == 1
                          ? text("tensor ", in_quotes(tensors.first), " is ", reason)
                          : text(tensors.count, " tensors, ", in_quotes(tensors.first), " the first, are ", reason));
    return lines;
  }

 private:
  struct Tensors {
    std::string first;
    index_t count = 0;
  };

  static Format unblocked(Format format) { return format_info(format).block > 1 ? Format::f32 : format; }
  static bool divides(Format format, index_t cols) { return cols % format_info(format).block == 0; }
  /// Errors in the head reach the logits undamped.
  static Format for_head(Format format, index_t cols) {
    if (format_info(format).block == 1 || format == Format::q8_0) return format;
    return divides(Format::q6_k, cols) ? Format::q6_k : Format::q8_0;
  }
  /// The next larger format in which a row is whole blocks.
  static Format fitting(Format format, index_t cols) {
    if (divides(format, cols)) return format;
    Format const smaller_blocks = format == Format::q4_k   ? Format::q5_0
                                  : format == Format::q5_k ? Format::q5_1
                                                           : Format::q8_0;
    return divides(smaller_blocks, cols) ? smaller_blocks : Format::f16;
  }
  void note(TensorInfo const& tensor, std::string const& reason) {
    auto& tensors = reasons_[reason];
    if (tensors.count++ == 0) tensors.first = tensor.name;
  }

  std::optional<Format> type_;
  bool gguf_;
  std::map<std::string, Tensors> reasons_;
};

/// `from` under another name and in another format.
inline TensorConversion conversion(TensorInfo const& from, std::string name, Format format) {
  TensorConversion result{from, from, {}, false};
  result.to.name = std::move(name);
  result.to.format = format;
  result.to.data = nullptr;
  auto const bytes = stored_bytes(format, from.shape);
  expects(bytes.has_value(), "tensor ", in_quotes(result.to.name), " of shape ", shape_text(from.shape),
          " cannot be stored as ", format_info(format).name);
  result.to.bytes = *bytes;
  return result;
}

/// As above, turned: GPT-2's Conv1D keeps [in, out].
inline TensorConversion transposed_conversion(TensorInfo const& from, std::string name, Format format) {
  TensorInfo turned = from;
  std::reverse(turned.shape.begin(), turned.shape.end());
  auto result = conversion(turned, std::move(name), format);
  result.from = from;
  result.transposed = true;
  return result;
}

namespace detail {

/// Whether a value would be lost: not finite in a block, or finite only before it became a half.
inline bool loses_a_value(Format format, const float* values, index_t count) {
  bool const block = format_info(format).block > 1;
  if (!block && format != Format::f16) return false;
  float const most = std::numeric_limits<float>::max(), half = 65520;  // halves round it up to infinity
  bool lost = false;
  for (index_t k = 0; k < count; ++k) {
    float const size = std::fabs(values[k]);
    lost |= block ? !(size <= most) : size >= half && size <= most;
  }
  return lost;
}

/// Writes the rows of one tensor, a band of them at a time.
class TensorPipe {
 public:
  TensorPipe(std::filesystem::path const& path, TensorConversion const& tensor, OutputFile& file, Executor& executor)
      : path_(path), tensor_(tensor), file_(file), executor_(executor) {
    // elements of a vector are put in order as rows of one
    bool const column = tensor.to.shape.size() == 1 && !tensor.row_order.empty();
    cols_ = column || tensor.to.shape.empty() ? 1 : tensor.to.shape.back();
    rows_ = cols_ == 0 ? 0 : tensor.to.elements() / cols_;
    from_bytes_ = row_bytes(tensor.from.format, tensor.transposed ? rows_ : cols_);
    to_bytes_ = row_bytes(tensor.to.format, cols_);
    expects(!column || format_info(tensor.from.format).block == 1, "the elements of tensor ",
            in_quotes(tensor.from.name), " cannot be put in order: it is quantised");
  }

  void run() {
    index_t const block = format_info(tensor_.from.format).block;
    index_t const band = tensor_.transposed
                             ? std::max<index_t>(block, 64)
                             : std::max<index_t>(1, (index_t{1} << 20) / std::max<index_t>(to_bytes_, 1));
    std::vector<std::byte> encoded(static_cast<std::size_t>(std::min(band, rows_) * to_bytes_));
    for (index_t first = 0; first < rows_; first += band) {
      index_t const count = std::min(band, rows_ - first);
      if (tensor_.transposed) gather(first, count);
      executor_.run(count, [&](index_t k) { write_row(first, k, encoded.data() + k * to_bytes_); });
      if (lost_)
        raise<FormatError>(path_.string(), ": tensor ", in_quotes(tensor_.from.name), " holds a value that ",
                           format_info(tensor_.to.format).name, " cannot");
      file_.write(encoded.data(), static_cast<std::size_t>(count * to_bytes_));
    }
  }

 private:
  /// Columns [first, first + count) of the stored matrix become rows.
  void gather(index_t first, index_t count) {
    band_.resize(static_cast<std::size_t>(count * cols_));
    std::vector<float> part(static_cast<std::size_t>(count));
    for (index_t c = 0; c < cols_; ++c) {
      decode_row(tensor_.from.format, tensor_.from.data + c * from_bytes_, first, count, part.data());
      for (index_t k = 0; k < count; ++k)
        band_[static_cast<std::size_t>(k * cols_ + c)] = part[static_cast<std::size_t>(k)];
    }
  }

  void write_row(index_t first, index_t k, std::byte* out) {
    if (tensor_.transposed) return encode(band_.data() + k * cols_, out);
    index_t const row = first + k;
    auto const& order = tensor_.row_order;
    const std::byte* const stored =
        tensor_.from.data + (order.empty() ? row : order[static_cast<std::size_t>(row)]) * from_bytes_;
    if (tensor_.from.format == tensor_.to.format) {
      std::memcpy(out, stored, static_cast<std::size_t>(to_bytes_));
      return;
    }
    std::vector<float> values(static_cast<std::size_t>(cols_));
    decode_row(tensor_.from.format, stored, 0, cols_, values.data());
    encode(values.data(), out);
  }

  void encode(const float* values, std::byte* out) {
    if (loses_a_value(tensor_.to.format, values, cols_)) lost_ = true;
    encode_row(tensor_.to.format, values, cols_, out);
  }

  std::filesystem::path const& path_;
  TensorConversion const& tensor_;
  OutputFile& file_;
  Executor& executor_;
  index_t rows_ = 0, cols_ = 0, from_bytes_ = 0, to_bytes_ = 0;
  std::vector<float> band_;
  std::atomic<bool> lost_{false};  // tasks must not throw
};

/// The tensors to announce in a header, and their conversions by name.
struct ConversionList {
  std::vector<TensorInfo> tensors;
  std::map<std::string_view, TensorConversion const*> by_name;

  explicit ConversionList(std::vector<TensorConversion> const& conversions) {
    for (auto const& one : conversions) tensors.push_back(one.to), by_name[one.to.name] = &one;
  }
  /// Writes the bytes of one of them; `path` is for messages.
  void put(std::filesystem::path const& path, TensorInfo const& tensor, OutputFile& file, Executor& executor) const {
    TensorPipe(path, *by_name.at(tensor.name), file, executor).run();
  }
};

}  // namespace detail

/// Called with each tensor before it is written.
using OnTensor = std::function<void(TensorInfo const&)>;

/// Writes a GGUF file of converted tensors, in their order. A band of rows is in memory at a time.
inline void write_gguf(std::filesystem::path const& path, GgufMetadata const& metadata,
                       std::vector<TensorConversion> const& conversions, Executor& executor,
                       OnTensor const& on_tensor = {}) {
  detail::ConversionList const list(conversions);
  write_gguf(path, metadata, list.tensors, [&](TensorInfo const& tensor, OutputFile& file) {
    if (on_tensor) on_tensor(tensor);
    list.put(path, tensor, file, executor);
  });
}

/// The same as a safetensors file.
inline void write_safetensors(std::filesystem::path const& path, std::vector<TensorConversion> const& conversions,
                              Executor& executor, OnTensor const& on_tensor = {}) {
  detail::ConversionList const list(conversions);
  write_safetensors(path, list.tensors, {{"format", "pt"}}, [&](TensorInfo const& tensor, OutputFile& file) {
    if (on_tensor) on_tensor(tensor);
    list.put(path, tensor, file, executor);
  });
}

}  // namespace graft
