// SPDX-License-Identifier: Apache-2.0
// Checkpoints: folders DIR/checkpoint-<step> that are either whole or not there, whenever the process or machine dies.
#pragma once

#include <graft/core/error.hpp>
#include <graft/core/executor.hpp>
#include <graft/core/format.hpp>
#include <graft/core/view.hpp>
#include <graft/io/checked.hpp>
#include <graft/io/json.hpp>
#include <graft/io/output_file.hpp>
#include <graft/io/safetensors.hpp>
#include <graft/io/tensor_file.hpp>

#include <nlohmann/json.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace graft {

/// A checkpoint as read: what a training needs to go on as if it had never stopped.
struct Checkpoint {
  std::filesystem::path folder;
  nlohmann::ordered_json state;  ///< state.json
  TensorFile tensors;            ///< training.safetensors: parameters, the optimiser's state, the best so far

  /// FormatError when the tensor is missing or is not [size] numbers of type R.
  template <class R>
  void read(std::string const& name, VectorView<R> to) const {
    auto const& tensor = tensors.at(name, {to.size});
    Format const format = tensor_info<R>("", {}, nullptr).format;
    if (tensor.format != format)
      raise<FormatError>(tensors.path(), ": tensor ", in_quotes(name), " is ", format_info(tensor.format).name,
                         ", expected ", format_info(format).name);
    std::copy_n(reinterpret_cast<R const*>(tensor.data), to.size, to.data);
  }
};

/// The checkpoints in one folder. The newest counts; older ones are removed when it is whole.
class CheckpointFolder {
 public:
  explicit CheckpointFolder(std::filesystem::path out) : out_(std::move(out)) {}

  /// The step of the newest checkpoint, or -1.
  index_t newest() const {
    auto const steps = all();
    return steps.empty() ? -1 : *std::max_element(steps.begin(), steps.end());
  }

  /// Reads the newest one; call only where there is one. FormatError when its files are not whole.
  Checkpoint read() const {
    Checkpoint checkpoint;
    checkpoint.folder = path(newest());
    checkpoint.state = read_json<nlohmann::ordered_json>(checkpoint.folder / "state.json");
    checkpoint.tensors = read_safetensors(checkpoint.folder / "training.safetensors");
    return checkpoint;
  }

  /// Writes a checkpoint beside the others; `more` adds files to its folder. Everything is on the disk before the
  /// folder gets its name, and the name is, before older ones go. A step that is saved already stays as it is.
  void write(index_t step, nlohmann::ordered_json const& state, std::vector<TensorInfo> tensors,
             FunctionRef<void(std::filesystem::path const&)> more) {
    namespace fs = std::filesystem;
    if (fs::exists(path(step))) return;
    std::error_code error;
    fs::path const temporary = out_ / "checkpoint.part";
    fs::remove_all(temporary, error);  // of a run that was killed
    if (!error) fs::create_directories(temporary, error);
    check(error);
    more(temporary);
    write_safetensors(temporary / "training.safetensors", std::move(tensors));
    OutputFile file(temporary / "state.json");
    file.write(state.dump(2) + "\n");
    file.commit();
    flush(temporary);
    fs::rename(temporary, path(step), error);
    check(error);
    flush(out_);
    for (index_t const old : all())
      if (old != step) fs::remove_all(path(old), error);
  }

  /// Removes them all: the training is complete.
  void clear() {
    std::error_code ignored;
    for (index_t const step : all()) std::filesystem::remove_all(path(step), ignored);
    std::filesystem::remove_all(out_ / "checkpoint.part", ignored);
  }

 private:
  std::filesystem::path path(index_t step) const { return out_ / text("checkpoint-", step); }

  std::vector<index_t> all() const {
    std::vector<index_t> steps;
    std::error_code ignored;
    for (auto const& entry : std::filesystem::directory_iterator(out_, ignored)) {
      std::string const name = entry.path().filename().string();
      constexpr std::string_view prefix = "checkpoint-";
      if (!name.starts_with(prefix)) continue;
      index_t step = 0;
      char const *const first = name.data() + prefix.size(), *const last = name.data() + name.size();
      auto const [end, error] = std::from_chars(first, last, step);
      if (error == std::errc{} && end == last) steps.push_back(step);
    }
    return steps;
  }
  void check(std::error_code const& error) const {
    if (error) raise<FormatError>(out_.string(), ": no checkpoint can be written: ", error.message());
  }
  /// The names in a folder, onto the disk.
  static void flush(std::filesystem::path const& folder) {
    int const descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY);
    if (descriptor < 0) return;
    ::fsync(descriptor);  // some file systems cannot do this, and need it not
    ::close(descriptor);
  }

  std::filesystem::path out_;
};

/// FormatError naming the first option that differs between a checkpoint and this call. Both are objects.
inline void check_same_options(std::filesystem::path const& checkpoint, nlohmann::ordered_json const& then,
                               nlohmann::ordered_json const& now) {
  auto const shown = [](nlohmann::ordered_json const& options, std::string const& key) {
    return options.contains(key) ? options.at(key).dump(-1, ' ', true).substr(0, 80) : std::string("not set");
  };
  auto const compare = [&](nlohmann::ordered_json const& keys) {
    for (auto const& [key, value] : keys.items())
      if (!then.contains(key) || !now.contains(key) || then.at(key) != now.at(key))
        raise<FormatError>(checkpoint.string(), ": was made with ", key, " ", shown(then, key), ", now it is ",
                           shown(now, key), "; a training can only be resumed with the options it began with");
  };
  compare(now), compare(then);
}

}  // namespace graft
