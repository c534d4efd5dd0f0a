// SPDX-License-Identifier: Apache-2.0
// Files that appear under their name only when complete.
#pragma once

#include <graft/core/error.hpp>

#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>

namespace graft {

/// Writes beside `path` under a temporary name and renames in `commit`; without commit nothing is left behind. A device
/// or a pipe is written to as it is: a file in its place would take it away from everybody.
class OutputFile {
 public:
  explicit OutputFile(const std::filesystem::path& path) : path_(path.string()) {
    namespace fs = std::filesystem;
    std::error_code ignored;
    auto const there = fs::status(path, ignored);
    if (fs::exists(there) && !fs::is_regular_file(there) && !fs::is_directory(there)) {
      file_ = std::fopen(path_.c_str(), "wb");
      if (file_ == nullptr) fail("opened");
      return;
    }
    for (int attempt = 0; file_ == nullptr; ++attempt) {  // another process, or a crash, may hold a name
      temporary_ = text(path_, ".part", ::getpid(), '.', attempt);
      file_ = std::fopen(temporary_.c_str(), "wbx");
      if (file_ == nullptr && (errno != EEXIST || attempt == 100)) fail("created");
    }
  }
  ~OutputFile() {
    if (file_ != nullptr) std::fclose(file_);
    if (!committed_ && !temporary_.empty()) std::remove(temporary_.c_str());
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(const void* data, std::size_t bytes) {
    if (bytes > 0 && std::fwrite(data, 1, bytes, file_) != bytes) fail("written");
  }
  void write(std::string_view characters) { write(characters.data(), characters.size()); }

  /// Flushes to the disk and gives the file its name, replacing what had it.
  void commit() {
    bool const in_place = temporary_.empty();
    if (std::fflush(file_) != 0 || (!in_place && ::fsync(::fileno(file_)) != 0)) fail("written");
    std::FILE* const file = file_;
    file_ = nullptr;
    if (std::fclose(file) != 0) fail("written");
    if (!in_place && std::rename(temporary_.c_str(), path_.c_str()) != 0) fail("given its name");
    committed_ = true;
  }

 private:
  [[noreturn]] void fail(const char* action) const {
    raise<FormatError>(path_, ": cannot be ", action, ": ", std::strerror(errno));
  }

  std::string path_, temporary_;  // no temporary name: written in place
  std::FILE* file_ = nullptr;
  bool committed_ = false;
};

}  // namespace graft
