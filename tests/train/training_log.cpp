// SPDX-License-Identifier: Apache-2.0
// The log of a training, and what is left of it when a training goes on.
#include <graft/train/training_log.hpp>
#include <tests/catch.hpp>
#include <tests/io/files.hpp>

#include <string>

namespace {

using namespace graft;
using namespace graft_test;

TrainingProgress at(index_t step) {
  TrainingProgress progress;
  progress.step = step, progress.epoch = 0.25 * static_cast<double>(step), progress.loss = 2.5, progress.rate = 1e-3;
  progress.norm = 0.125, progress.tokens = 100 * step, progress.seconds = 1.5;
  return progress;
}

TEST_CASE("every step is one line, at once") {
  TemporaryFolder folder;
  TrainingLog log(folder / "log.csv", 0);
  std::string const header = std::string(TrainingLog::header) + "\n";
  CHECK(read_bytes(folder / "log.csv") == header);
  log.write(at(1));
  CHECK(read_bytes(folder / "log.csv") == header + "1,0.2500,2.5,0.001,0.125,,,100,1.50\n");
  auto validated = at(2);
  validated.validation_loss = 1.75, validated.validation_accuracy = 0.5;
  log.write(validated);
  CHECK(read_bytes(folder / "log.csv").ends_with("2,0.5000,2.5,0.001,0.125,1.75,0.5,200,1.50\n"));
}

TEST_CASE("a training that goes on forgets what was logged behind its checkpoint") {
  TemporaryFolder folder;
  {
    TrainingLog log(folder / "log.csv", 0);
    for (index_t step = 1; step <= 4; ++step) log.write(at(step));
  }
  write_bytes(folder / "log.csv", read_bytes(folder / "log.csv") + "5,1.2");  // killed while it wrote
  std::string const whole = read_bytes(folder / "log.csv");
  {
    TrainingLog log(folder / "log.csv", 2);
    log.write(at(3));
  }
  std::string const kept = read_bytes(folder / "log.csv");
  CHECK(kept == whole.substr(0, whole.find("\n4,") + 1));
  TrainingLog(folder / "log.csv", 0);  // a new training
  CHECK(read_bytes(folder / "log.csv") == std::string(TrainingLog::header) + "\n");
}

}  // namespace
