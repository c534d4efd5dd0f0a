// SPDX-License-Identifier: Apache-2.0
// Folders whose files appear together, and only when all are complete.
#pragma once

#include <graft/core/error.hpp>

#include <unistd.h>

#include <filesystem>
#include <string>
#include <system_error>

namespace graft {

/// Collects files in a folder beside `path`; `commit` gives them their place. Without it nothing is left behind.
class OutputFolder {
 public:
  /// FormatError when `path` is there and no folder, or the folder beside it cannot be made.
  explicit OutputFolder(std::filesystem::path const& path) : path_(path.lexically_normal()) {
    if (!path_.has_filename()) path_ = path_.parent_path();  // "folder/"
    std::error_code error;
    if (std::filesystem::exists(path_, error) && !std::filesystem::is_directory(path_, error))
      raise<FormatError>(path_.string(), ": is there and is not a folder");
    for (int attempt = 0; !made_; ++attempt) {  // another process, or a crash, may hold a name
      temporary_ = text(path_.string(), ".part", ::getpid(), '.', attempt);
      made_ = std::filesystem::create_directory(temporary_, error);
      if (error || attempt == 100) raise<FormatError>(path_.string(), ": cannot be created: ", error.message());
    }
  }
  ~OutputFolder() {
    std::error_code ignored;
    if (made_) std::filesystem::remove_all(temporary_, ignored);
  }
  OutputFolder(OutputFolder const&) = delete;
  OutputFolder& operator=(OutputFolder const&) = delete;

  /// Where to write the file that is to have this name in the folder.
  std::filesystem::path operator/(std::string const& name) const { return temporary_ / name; }

  /// The folder gets its name. Where one is there already, its files of the same names are replaced one after the
  /// other, and others stay.
  void commit() {
    namespace fs = std::filesystem;
    std::error_code error;
    if (!fs::exists(path_, error) && !error) {
      fs::rename(temporary_, path_, error);
      made_ = static_cast<bool>(error);
    } else {
      for (fs::directory_iterator file(temporary_, error), end; !error && file != end; file.increment(error))
        fs::rename(file->path(), path_ / file->path().filename(), error);
    }
    if (error) raise<FormatError>(path_.string(), ": cannot be given its files: ", error.message());
  }

 private:
  std::filesystem::path path_, temporary_;
  bool made_ = false;
};

}  // namespace graft
