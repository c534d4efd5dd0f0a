// SPDX-License-Identifier: Apache-2.0
// Files made and looked at by the reader tests.
#pragma once

#include <graft/core/error.hpp>
#include <graft/io/tensor_file.hpp>

#include <unistd.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>

namespace graft_test {

/// A new empty folder that goes with its contents.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "graft-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder at " + name);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline void write_bytes(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + path.string());
}

inline std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Reads every byte the tensors claim to have, so that a sanitizer or the page tables object to a wrong claim.
inline void touch(const graft::TensorFile& file) {
  unsigned sum = 0;
  for (auto const& tensor : file.tensors()) {
    for (std::size_t k = 0; k < tensor.bytes; ++k) sum += static_cast<unsigned>(tensor.data[k]);
  }
  [[maybe_unused]] unsigned volatile const used = sum;
}

/// The FormatError's sentence when `read` refuses the bytes as a file of this name, "" when it accepts them. Whatever
/// else it throws passes through. A sentence that does not begin with the path, or is more than one line, is an error
/// of its own.
template <class Read>
std::string refusal(const std::filesystem::path& path, std::string_view bytes, Read&& read) {
  write_bytes(path, bytes);
  try {
    read(path);
  } catch (const graft::FormatError& error) {
    std::string const sentence = error.what(), prefix = path.string() + ": ";
    if (sentence.substr(0, prefix.size()) != prefix) throw std::logic_error("no path in: " + sentence);
    if (sentence.find_first_of("\n\r") != std::string::npos) throw std::logic_error("several lines in: " + sentence);
    return sentence.substr(prefix.size());
  }
  return "";
}

}  // namespace graft_test
