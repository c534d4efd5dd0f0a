// SPDX-License-Identifier: Apache-2.0
// What the parts of the command that write models share.
#pragma once

#include <graft/core/format.hpp>
#include <graft/io/tensor_file.hpp>

#include <cstddef>
#include <filesystem>
#include <map>
#include <optional>
#include <string>

namespace graft::cli {

/// "q4_1" -> Format::q4_1; none for an empty name; UsageError for a format that matrices cannot have.
std::optional<Format> parse_type(std::string const& name);

/// Texts to be written beside the weights, by file name.
using Companions = std::map<std::string, std::string>;

/// What else a model folder may hold that says something about the model, whatever its weights' format.
Companions other_files(std::filesystem::path const& folder);

/// Shows which tensor is being written, where somebody may be looking.
class Progress {
 public:
  explicit Progress(std::size_t total);
  ~Progress();
  void operator()(TensorInfo const& tensor);

 private:
  bool live_;
  std::size_t total_, done_ = 0;
};

}  // namespace graft::cli
