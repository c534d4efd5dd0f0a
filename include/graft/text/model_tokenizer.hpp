// SPDX-License-Identifier: Apache-2.0
// The tokenizer of a model, wherever it lies: in a GGUF file or beside the weights in a Hugging Face folder.
#pragma once

#include <graft/io/compiled.hpp>
#include <graft/text/tokenizer_spec.hpp>

#if GRAFT_FILES_ARE_HERE
#include <graft/io/gguf.hpp>
#include <graft/text/gguf_tokenizer.hpp>
#include <graft/text/hf_tokenizer.hpp>
#endif

#include <filesystem>

namespace graft {

/// `path` is a GGUF file, an HF folder, or a file in one (tokenizer.json itself, or the model's safetensors).
GRAFT_FILES TokenizerSpec read_tokenizer(std::filesystem::path const& path);

#if GRAFT_FILES_ARE_HERE
GRAFT_FILES TokenizerSpec read_tokenizer(std::filesystem::path const& path) {
  if (is_gguf(path)) return read_gguf_tokenizer(read_gguf(path).metadata, path.string());
  return read_hf_tokenizer(path.extension() == ".safetensors" ? path.parent_path() : path);
}
#endif

}  // namespace graft
