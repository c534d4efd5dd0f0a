// SPDX-License-Identifier: Apache-2.0
// Files as read-only memory.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/huge_pages.hpp>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace graft {

/// A regular file mapped read-only. Pages are read when first touched, so opening costs the same for any size.
/// The mapping stays valid when the file is replaced or deleted; truncating it in place while mapped is the user's
/// peril.
class MappedFile {
 public:
  /// FormatError with the reason when there is no such readable file.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path) {
    return std::shared_ptr<const MappedFile>(new MappedFile(path.string()));
  }
  ~MappedFile() {
    if (size_ > 0) ::munmap(data_, size_);
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const std::byte* data() const { return static_cast<const std::byte*>(data_); }
  std::size_t size() const { return size_; }
  std::span<const std::byte> bytes() const { return {data(), size_}; }
  std::string_view characters() const { return {static_cast<const char*>(data_), size_}; }

 private:
  explicit MappedFile(std::string path) : path_(std::move(path)) {
    struct Descriptor {
      int value;
      ~Descriptor() {
        if (value >= 0) ::close(value);
      }
    } const file{::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};  // never wait for a pipe's writer
    if (file.value < 0) fail("cannot be opened: ", std::strerror(errno));
    struct stat status {};
    if (::fstat(file.value, &status) != 0) fail("cannot be examined: ", std::strerror(errno));
    if (S_ISDIR(status.st_mode)) fail("is a folder, a file was expected");
    if (!S_ISREG(status.st_mode)) fail("is not a regular file and cannot be mapped");
    size_ = static_cast<std::size_t>(status.st_size);
    if (size_ == 0) return;
    data_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.value, 0);
    if (data_ == MAP_FAILED) fail("cannot be mapped: ", std::strerror(errno));
    detail::prefer_huge_pages(data_, size_);
  }
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    raise<FormatError>(path_, ": ", parts...);
  }

  std::string path_;
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace graft
