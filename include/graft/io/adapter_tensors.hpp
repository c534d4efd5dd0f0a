// SPDX-License-Identifier: Apache-2.0
// Numbers of adapter files: decoded and encoded with every value checked to be finite.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/core/scalar.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/tensor_file.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

namespace graft::detail {

/// All values of a stored tensor of real numbers, decoded to `to`. FormatError when one is not finite.
template <class R>
void decode_finite(std::string const& file, TensorInfo const& tensor, R* to) {
  index_t const count = tensor.elements();
  decode_row(tensor.format, tensor.data, 0, count, to);
  for (index_t k = 0; k < count; ++k)
    if (!is_finite(to[k]))
      raise<FormatError>(file, ": tensor ", in_quotes(tensor.name), " holds ", to[k], " at place ", k);
}

/// The bytes of `count` values as f32, f16 or bf16. ContractError when one is not finite there; `name` is the tensor's.
template <class R>
std::vector<std::byte> encode_finite(std::string const& name, R const* values, index_t count, Format format) {
  expects(format == Format::f32 || format == Format::bf16 || format == Format::f16, "graft: adapters are written as ",
          "F32, BF16 or F16, not ", format_info(format).name);
  std::vector<float> numbers(static_cast<std::size_t>(count));
  std::transform(values, values + count, numbers.begin(), [](R value) { return static_cast<float>(value); });
  std::vector<std::byte> bytes(static_cast<std::size_t>(row_bytes(format, count)));
  encode_row(format, numbers.data(), count, bytes.data());
  decode_row(format, bytes.data(), 0, count, numbers.data());
  for (index_t k = 0; k < count; ++k)
    expects(is_finite(numbers[static_cast<std::size_t>(k)]), "graft: tensor ", name, " holds ", values[k], " at place ",
            k, ", which cannot be written as ", format_info(format).name);
  return bytes;
}

}  // namespace graft::detail
