// SPDX-License-Identifier: Apache-2.0
// A model's configuration in GGUF metadata: what a key left out means.
#include <tests/catch.hpp>
#include <tests/io/files.hpp>

#include <graft/io/gguf_config.hpp>

#include <cstdint>
#include <vector>

namespace {

using namespace graft;

GgufMetadata llama() {
  GgufMetadata metadata;
  metadata.set("general.architecture", "llama");
  for (auto const* key : {"block_count", "embedding_length", "feed_forward_length", "context_length"})
    metadata.set(text("llama.", key), std::uint32_t{4});
  metadata.set("llama.attention.head_count", std::uint32_t{1});
  return metadata;
}

RopeConfig rope_of(GgufMetadata const& metadata) {
  graft_test::TemporaryFolder const folder;
  std::vector<float> const embedding(8);
  write_gguf(folder / "m.gguf", metadata, {tensor_info("token_embd.weight", {2, 4}, embedding.data())});
  return read_gguf_config(read_gguf(folder / "m.gguf")).rope;
}

TEST_CASE("a factor of positions without a kind of scaling is linear, as in llama.cpp") {
  using Scaling = RopeConfig::Scaling;
  auto metadata = llama();
  CHECK(rope_of(metadata).scaling == Scaling::none);
  metadata.set("llama.rope.scale_linear", 2.0f);  // its name in 2023
  CHECK(rope_of(metadata).scaling == Scaling::linear);
  CHECK(rope_of(metadata).factor == 2);
  metadata.set("llama.rope.scaling.factor", 4.0f);
  CHECK(rope_of(metadata).factor == 4);
  metadata.set("llama.rope.scaling.factor", 0.0f);
  CHECK(rope_of(metadata).scaling == Scaling::none);
  metadata.set("llama.rope.scaling.factor", 4.0f);
  metadata.set("llama.rope.scaling.type", "none");
  CHECK(rope_of(metadata).scaling == Scaling::none);
}

}  // namespace
