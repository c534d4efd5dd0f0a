// SPDX-License-Identifier: Apache-2.0
// The log of a training: one line of comma-separated values per optimiser step.
#pragma once

#include <graft/core/error.hpp>
#include <graft/io/output_file.hpp>
#include <graft/train/trainer_options.hpp>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace graft {

/// Appends a line behind each step, so that it can be followed while the training runs.
class TrainingLog {
 public:
  static constexpr char const* header = "step,epoch,loss,rate,norm,validation_loss,validation_accuracy,tokens,seconds";

  /// Begins a new log, or goes on with one behind `step`: what a run that was killed wrote later is forgotten.
  TrainingLog(std::filesystem::path const& path, index_t step) : path_(path.string()) {
    std::string kept = text(header, '\n');
    std::ifstream old(path);
    std::string line;
    while (step > 0 && std::getline(old, line))
      if (index_t const at = std::strtoll(line.c_str(), nullptr, 10); at >= 1 && at <= step) kept += line + '\n';
    old.close();
    OutputFile file(path);
    file.write(kept);
    file.commit();
    file_.open(path, std::ios::app);
    if (!file_) fail();
  }

  void write(TrainingProgress const& progress) {
    char line[256];
    std::snprintf(line, sizeof line, "%lld,%.4f,%.6g,%.6g,%.6g,", static_cast<long long>(progress.step), progress.epoch,
                  progress.loss, progress.rate, progress.norm);
    std::string row = line;
    for (auto const& value : {progress.validation_loss, progress.validation_accuracy}) {
      std::snprintf(line, sizeof line, "%.6g", value.value_or(0));
      row += (value ? line : std::string()) + ',';
    }
    std::snprintf(line, sizeof line, "%lld,%.2f\n", static_cast<long long>(progress.tokens), progress.seconds);
    file_ << row + line << std::flush;
    if (!file_) fail();
  }

 private:
  [[noreturn]] void fail() const { raise<FormatError>(path_, ": cannot be written"); }

  std::string path_;
  std::ofstream file_;
};

}  // namespace graft
