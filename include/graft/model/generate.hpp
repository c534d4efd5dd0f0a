// SPDX-License-Identifier: Apache-2.0
// Continuations of a batch of requests, each with its own adapters and its own way of sampling.
#pragma once

#include <graft/backend/sampling.hpp>
#include <graft/core/executor.hpp>
#include <graft/model/context.hpp>
#include <graft/model/sampling.hpp>

#include <chrono>
#include <limits>
#include <span>
#include <vector>

namespace graft {

struct GenerationRequest {
  std::vector<std::int32_t> prompt = {};  ///< tokens, at least one
  std::vector<AdapterUse> adapters = {};
  index_t max_tokens = 64;
  std::vector<std::int32_t> stop = {};  ///< a token of these ends the continuation and is not part of it
  SamplingOptions sampling = {};
};

struct Generation {
  std::vector<std::int32_t> tokens;
  bool stopped = false;  ///< by a stop token
  double seconds = 0;    ///< from the start of the batch to the request's last token
};

/// Chooses the next tokens of requests from their logits: on the host by Samplers, elsewhere by the backend's `sample`,
/// so that only tokens travel. Both read the same random streams.
template <class B>
class TokenChooser {
 public:
  explicit TokenChooser(std::span<GenerationRequest const> requests) {
    for (auto const& request : requests) samplers_.emplace_back(request.sampling);
    if constexpr (!on_host)
      for (auto const& request : requests) {
        auto const& options = request.sampling;
        rows_.push_back({options.temperature, options.top_p, options.min_p, options.repeat_penalty, options.top_k,
                         Random(options.seed), nullptr, 0});
      }
  }

  /// Runs the inputs, one per active request, and chooses a token for each; seen[q]: the tokens of request q so far.
  template <class Arch>
  std::span<std::int32_t const> next(BackboneContext<Arch, B>& context, std::span<SequenceInput<B> const> inputs,
                                     std::span<std::size_t const> active,
                                     std::vector<std::vector<std::int32_t>> const& seen) {
    index_t const vocabulary = context.backbone().ends().output_width();
    auto const count = static_cast<index_t>(active.size());
    tokens_.resize(active.size());
    if constexpr (on_host) {
      logits_.resize(active.size() * static_cast<std::size_t>(vocabulary));
      auto const logits = matrix_view(logits_.data(), count, vocabulary);
      context.forward_last(inputs, logits);
      context.backend().executor().run(count, [&](index_t n) {
        auto const k = static_cast<std::size_t>(n);
        tokens_[k] =
            samplers_[active[k]].sample({logits.row(n), static_cast<std::size_t>(vocabulary)}, seen[active[k]]);
      });
    } else {
      B& be = context.backend();
      auto const scope = be.scope();
      auto const logits = be.arena().template matrix<typename B::Act>(count, vocabulary);
      context.forward_last(inputs, logits);
      std::vector<SamplingRow> rows;
      for (auto const q : active) {
        auto& row = rows.emplace_back(rows_[q]);
        if (row.repeat_penalty != 1) row.seen = upload(be, std::span<std::int32_t const>(seen[q]));
        row.seen_count = row.seen != nullptr ? static_cast<index_t>(seen[q].size()) : 0;
        if (row.temperature > 0) rows_[q].random.next();  // what the device draws
      }
      auto const on_device = be.arena().template vector<SamplingRow>(count);
      copy_to_device(be, static_cast<SamplingRow const*>(rows.data()), on_device.data, count);
      auto const chosen = be.arena().template vector<std::int32_t>(count);
      sample(be, MatrixView<typename B::Act const, typename B::Space>(logits), on_device.data, chosen.data);
      copy_to_host(be, static_cast<std::int32_t const*>(chosen.data), tokens_.data(), count);
    }
    return tokens_;
  }

 private:
  static constexpr bool on_host = std::same_as<typename B::Space, HostSpace>;
  std::vector<Sampler> samplers_;  // check the options everywhere
  std::vector<SamplingRow> rows_;
  std::vector<float> logits_;
  std::vector<std::int32_t> tokens_;
};

/// Prefills all prompts in one step, then decodes all unfinished requests together. `on_token(request, token)` is
/// called as tokens come. A model that learned its positions ends a continuation where it has no more of them.
template <class Arch, class B>
std::vector<Generation> generate(BackboneContext<Arch, B>& context, std::span<GenerationRequest const> requests,
                                 FunctionRef<void(std::size_t, std::int32_t)> on_token) {
  auto const start = std::chrono::steady_clock::now();
  TokenChooser<B> chooser(requests);
  std::vector<Sequence<B>> sequences;
  std::vector<std::vector<std::int32_t>> seen;
  std::vector<Generation> results(requests.size());
  for (auto const& request : requests) {
    expects(!request.prompt.empty(), "graft: a request to generate from has no prompt tokens");
    sequences.push_back(context.start(request.adapters));
    seen.push_back(request.prompt);
  }

  auto longest = std::numeric_limits<std::size_t>::max();  // of a sequence whose last token can be read
  if constexpr (requires { Arch::learned_positions; })
    longest = static_cast<std::size_t>(context.backbone().config().positions);
  std::vector<std::size_t> active;
  for (std::size_t q = 0; q < requests.size(); ++q)
    if (requests[q].max_tokens > 0) active.push_back(q);
  std::vector<SequenceInput<B>> inputs;
  for (bool first = true; !active.empty(); first = false) {
    inputs.clear();
    for (auto q : active) {
      std::span<std::int32_t const> const all(seen[q]);
      inputs.push_back({&sequences[q], first ? all : all.last(1)});
    }
    auto const tokens = chooser.next(context, inputs, active, seen);
    std::size_t kept = 0;
    for (std::size_t k = 0; k < active.size(); ++k) {
      auto const q = active[k];
      auto& result = results[q];
      auto const token = tokens[k];
      auto const& stop = requests[q].stop;
      result.stopped = std::find(stop.begin(), stop.end(), token) != stop.end();
      if (!result.stopped) {
        result.tokens.push_back(token);
        seen[q].push_back(token);
        on_token(q, token);
      }
      result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      bool const more =
          static_cast<index_t>(result.tokens.size()) < requests[q].max_tokens && seen[q].size() <= longest;
      if (!result.stopped && more) active[kept++] = q;
    }
    active.resize(kept);
  }
  return results;
}

#if defined(GRAFT_EXTERN_KERNELS)
GRAFT_ONCE_WITH_KERNELS std::vector<Generation> generate(BackboneContext<Gpt2, CpuBackend<>>&,
                                                         std::span<GenerationRequest const>,
                                                         FunctionRef<void(std::size_t, std::int32_t)>);
GRAFT_ONCE_WITH_KERNELS std::vector<Generation> generate(BackboneContext<Llama, CpuBackend<>>&,
                                                         std::span<GenerationRequest const>,
                                                         FunctionRef<void(std::size_t, std::int32_t)>);
#endif

}  // namespace graft
