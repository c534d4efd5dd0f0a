// SPDX-License-Identifier: Apache-2.0
// Checkpoints survive kill -9 at any moment, the newest counts, and other options are refused by name.
#include <graft/train/checkpoint.hpp>
#include <tests/catch.hpp>
#include <tests/io/files.hpp>

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

namespace {

using namespace graft;
using namespace graft_test;
using Json = nlohmann::ordered_json;

/// A checkpoint all of whose numbers are its step.
void save(CheckpointFolder& folder, index_t step) {
  std::vector<float> const values(20'000, static_cast<float>(step));
  std::vector<double> const wide(3, static_cast<double>(step));
  folder.write(step, {{"step", step}}, {tensor_info("v", {20'000}, values.data()), tensor_info("w", {3}, wide.data())},
               [&](std::filesystem::path const& at) { write_bytes(at / "step", std::to_string(step)); });
}
bool whole(Checkpoint const& checkpoint, index_t step) {
  std::vector<float> values(20'000);
  std::vector<double> wide(3);
  checkpoint.read("v", vector_view(values.data(), 20'000));
  checkpoint.read("w", vector_view(wide.data(), 3));
  auto const is_step = [&](auto value) { return value == static_cast<decltype(value)>(step); };
  return checkpoint.state.at("step") == step && std::all_of(values.begin(), values.end(), is_step) &&
         std::all_of(wide.begin(), wide.end(), is_step) &&
         read_bytes(checkpoint.folder / "step") == std::to_string(step);
}
index_t entries(std::filesystem::path const& folder) {
  return static_cast<index_t>(std::distance(std::filesystem::directory_iterator(folder), {}));
}

TEST_CASE("the newest checkpoint replaces the others") {
  TemporaryFolder out;
  CheckpointFolder folder(out / "run");
  CHECK(folder.newest() == -1);
  save(folder, 9);
  save(folder, 10);
  CHECK(folder.newest() == 10);
  CHECK(whole(folder.read(), 10));
  CHECK(entries(out / "run") == 1);
  // what a run that was killed may leave: half a new one, half of an old one gone
  std::filesystem::create_directories(out / "run/checkpoint.part/deep");
  std::filesystem::create_directories(out / "run/checkpoint-9");
  CHECK(folder.newest() == 10);
  save(folder, 11);
  CHECK(whole(folder.read(), 11));
  CHECK(entries(out / "run") == 1);
  folder.clear();
  CHECK(entries(out / "run") == 0);
}

TEST_CASE("kill -9 at any moment leaves a whole checkpoint") {
  TemporaryFolder out;
  CheckpointFolder folder(out.path());
  index_t last = 0;
  for (int round = 0; round < 30; ++round) {
    pid_t const child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      for (index_t step = last + 1;; ++step) save(folder, step);
    }
    ::usleep(static_cast<unsigned>(500 + 700 * round));  // from before the first write to after many
    REQUIRE(::kill(child, SIGKILL) == 0);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
    index_t const newest = folder.newest();
    if (newest < 0) continue;  // killed before the first was whole
    CHECK(newest >= last);
    CHECK(whole(folder.read(), newest));
    last = newest;
  }
  CHECK(last > 0);
}

TEST_CASE("damaged checkpoints are refused by name") {
  TemporaryFolder out;
  CheckpointFolder folder(out.path());
  save(folder, 1);
  std::vector<float> three(3);
  CHECK_THROWS_WITH(folder.read().read("w", vector_view(three.data(), 3)),
                    Catch::Contains("'w'") && Catch::Contains("expected F32"));
  CHECK_THROWS_WITH(folder.read().read("v", vector_view(three.data(), 3)), Catch::Contains("expected [3]"));
  CHECK_THROWS_WITH(folder.read().read("u", vector_view(three.data(), 3)), Catch::Contains("'u' is missing"));
  write_bytes(out / "checkpoint-1/state.json", "{");
  CHECK_THROWS_WITH(folder.read(), Catch::Contains("state.json"));
}

TEST_CASE("resuming with other options names the option") {
  Json const then{{"lr", 0.1}, {"steps", 5}};
  CHECK_NOTHROW(check_same_options("c", then, {{"steps", 5}, {"lr", 0.1}}));
  CHECK_THROWS_WITH(check_same_options("c", then, {{"lr", 0.2}, {"steps", 5}}),
                    Catch::Contains("c: was made with lr 0.1, now it is 0.2"));
  CHECK_THROWS_WITH(check_same_options("c", then, {{"lr", 0.1}}), Catch::Contains("steps 5, now it is not set"));
  CHECK_THROWS_WITH(check_same_options("c", then, {{"lr", 0.1}, {"steps", 5}, {"z", 1}}),
                    Catch::Contains("with z not set"));
}

}  // namespace
