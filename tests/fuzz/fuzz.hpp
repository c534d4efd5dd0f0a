// SPDX-License-Identifier: Apache-2.0
// What the fuzz targets share. A target defines LLVMFuzzerTestOneInput: with clang's -fsanitize=fuzzer it is
// libFuzzer's, with any other compiler fuzz_main.cpp replays files and mutates them.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/format.hpp>
#include <graft/io/tensor_file.hpp>

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace graft_fuzz {

/// A file in memory, for readers that take paths.
class InputFile {
 public:
  InputFile(const std::uint8_t* data, std::size_t size) : file_(::memfd_create("input", MFD_CLOEXEC)) {
    if (file_ < 0) std::abort();
    for (std::size_t done = 0; done < size;) {
      auto const count = ::write(file_, data + done, size - done);
      if (count <= 0) std::abort();
      done += static_cast<std::size_t>(count);
    }
  }
  ~InputFile() { ::close(file_); }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  std::filesystem::path path() const { return "/proc/self/fd/" + std::to_string(file_); }

 private:
  int file_;
};

/// Runs `read`; a FormatError is an answer, anything else it throws is a finding.
template <class Read>
void accept_or_refuse(Read&& read) {
  try {
    read();
  } catch (const graft::FormatError&) {
  }
}

/// Uses the tensors as a model would: finds each by name and decodes every row that can be a weight.
inline void use(const graft::TensorFile& file) {
  std::vector<float> row;
  double sum = 0;
  for (auto const& tensor : file.tensors()) {
    if (file.find(tensor.name) != &tensor) std::abort();
    sum += static_cast<double>(tensor.elements());
    for (std::size_t k = 0; k < tensor.bytes; ++k) sum += static_cast<double>(tensor.data[k]);
    if (!graft::format_info(tensor.format).weight || tensor.bytes == 0) continue;
    graft::index_t const cols = tensor.shape.empty() ? 1 : tensor.shape.back();
    graft::index_t const bytes = graft::row_bytes(tensor.format, cols);
    row.resize(static_cast<std::size_t>(cols));
    for (graft::index_t r = 0; r < tensor.elements() / cols; ++r) {
      graft::decode_row(tensor.format, tensor.data + r * bytes, 0, cols, row.data());
      sum += static_cast<double>(row.back());
    }
  }
  [[maybe_unused]] double volatile const used = sum;
}

}  // namespace graft_fuzz
