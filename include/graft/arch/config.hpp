// SPDX-License-Identifier: Apache-2.0
// A model's sizes and options, all known at run time; filled by io from config.json or GGUF metadata.
#pragma once

#include <graft/backend/activation.hpp>
#include <graft/backend/attention.hpp>
#include <graft/layer/rope.hpp>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace graft {

/// A tensor that not every model of an architecture has, a bias say, and whether a model has it.
struct OptionalTensor {
  enum class Presence { never, if_stored, always };
  std::string name;        ///< Hugging Face's; with in_layers what stands behind a layer's path
  bool in_layers = false;  ///< one in each layer: in all of them or in none
  Presence presence = Presence::always;
};

struct ModelConfig {
  /// More layers or labels no file may claim: memory is taken for them before any tensor is looked at.
  static constexpr index_t most_layers = 100000, most_labels = 100000;

  std::string architecture;  ///< "llama", "mistral", "qwen2", "qwen3", "gpt2", "bert", "roberta"
  std::string prefix;        ///< what paths of the backbone begin with: "model.", "transformer.", "bert.", ...
  std::string name;          ///< where it came from, for messages

  index_t vocabulary = 0;
  index_t width = 0;  ///< d
  index_t layers = 0;
  index_t heads = 0, kv_heads = 0, head_dim = 0;
  index_t ffn = 0;        ///< f
  index_t positions = 0;  ///< longest context the model was made for; the number of rows of learned positions
  double norm_eps = 1e-5;
  RopeConfig rope;
  index_t window = 0;          ///< sliding-window attention, 0: none
  std::vector<bool> windowed;  ///< [layers] or empty: which layers the window holds for (all, when empty)
  bool tied = true;            ///< the head is the embedding
  bool attention_bias = true, mlp_bias = true;  ///< of a decoder in a folder: whether its class has these biases
  Activation activation = Activation::silu;
  index_t token_types = 0;      ///< BERT
  index_t position_offset = 0;  ///< RoBERTa: position of the first token
  index_t padding = -1;         ///< the padding token, -1: none; a classifier that is a decoder reads the last other
  std::vector<std::int32_t> end_tokens;  ///< where a continuation ends, beside the tokenizer's own end of a text
  std::vector<std::string> labels;       ///< of a classification head; empty: language model or bare encoder
  bool classifier = false;
  bool language_model = true;  ///< with a head over the vocabulary, causal or masked

  /// BERT and its relatives; all others are decoders.
  bool is_encoder() const { return architecture == "bert" || architecture == "roberta"; }

  /// The row of a sequence in which a classifier answers: the first in an encoder; in a decoder the last whose token is
  /// not the padding token, as in transformers, or the first when all are.
  index_t answer_row(std::span<std::int32_t const> tokens, bool causal) const {
    index_t row = causal ? static_cast<index_t>(tokens.size()) - 1 : 0;
    while (row > 0 && tokens[static_cast<std::size_t>(row)] == padding) --row;
    return row;
  }
  /// Whether a token is not counted in positions: where they begin behind the padding token's, as in RoBERTa, padding
  /// has that one, -1 before the offset.
  bool uncounted(std::int32_t token) const { return position_offset > 0 && token == padding; }

  /// The row of a table of learned positions.
  std::int32_t position_row(index_t position) const { return static_cast<std::int32_t>(position + position_offset); }

  /// The path of a decoder's head and its outputs.
  std::string decoder_head() const { return classifier ? "score" : "lm_head"; }
  bool has_tied_head() const { return tied && language_model && !classifier; }
  index_t head_outputs() const { return classifier ? static_cast<index_t>(labels.size()) : vocabulary; }

  index_t window_of(index_t layer) const {
    return windowed.empty() || windowed[static_cast<std::size_t>(layer)] ? window : 0;
  }
  AttentionShape attention(index_t layer, bool causal) const {
    return {heads, kv_heads, head_dim, 1 / std::sqrt(static_cast<double>(head_dim)), causal, window_of(layer)};
  }
};

}  // namespace graft
