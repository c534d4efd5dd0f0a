// SPDX-License-Identifier: Apache-2.0
// Continuations of a batch of requests, each with its own adapters and its own way of sampling.
#pragma once

#include <graft/core/executor.hpp>
#include <graft/model/context.hpp>
#include <graft/model/sampling.hpp>

#include <chrono>
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

/// Prefills all prompts in one step, then decodes all unfinished requests together. `on_token(request, token)` is
/// called as tokens come.
template <class M>
std::vector<Generation> generate(Context<M>& context, std::span<GenerationRequest const> requests,
                                 FunctionRef<void(std::size_t, std::int32_t)> on_token) {
  using B = typename M::B;
  using Act = typename B::Act;
  static_assert(std::same_as<typename B::Space, HostSpace>, "graft: host sampling needs logits in host memory");
  auto const start = std::chrono::steady_clock::now();
  index_t const vocabulary = context.model().ends().output_width();
  std::vector<Sequence<B>> sequences;
  std::vector<Sampler> samplers;
  std::vector<std::vector<std::int32_t>> seen;
  std::vector<Generation> results(requests.size());
  for (auto const& request : requests) {
    expects(!request.prompt.empty(), "graft: a request to generate from has no prompt tokens");
    sequences.push_back(context.start(request.adapters));
    samplers.emplace_back(request.sampling);
    seen.push_back(request.prompt);
  }

  std::vector<std::size_t> active;
  for (std::size_t q = 0; q < requests.size(); ++q)
    if (requests[q].max_tokens > 0) active.push_back(q);
  std::vector<SequenceInput<B>> inputs;
  std::vector<Act> logits(active.size() * static_cast<std::size_t>(vocabulary));
  std::vector<float> row(static_cast<std::size_t>(vocabulary));
  for (bool first = true; !active.empty(); first = false) {
    inputs.clear();
    for (auto q : active) {
      std::span<std::int32_t const> const all(seen[q]);
      inputs.push_back({&sequences[q], first ? all : all.last(1)});
    }
    auto const out = matrix_view(logits.data(), static_cast<index_t>(active.size()), vocabulary);
    context.forward_last(inputs, out);
    std::size_t kept = 0;
    for (std::size_t k = 0; k < active.size(); ++k) {
      auto const q = active[k];
      auto& result = results[q];
      std::copy(out.row(static_cast<index_t>(k)), out.row(static_cast<index_t>(k)) + vocabulary, row.begin());
      auto const token = samplers[q].sample(row, seen[q]);
      auto const& stop = requests[q].stop;
      result.stopped = std::find(stop.begin(), stop.end(), token) != stop.end();
      if (!result.stopped) {
        result.tokens.push_back(token);
        seen[q].push_back(token);
        on_token(q, token);
      }
      result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      if (!result.stopped && static_cast<index_t>(result.tokens.size()) < requests[q].max_tokens) active[kept++] = q;
    }
    active.resize(kept);
  }
  return results;
}

}  // namespace graft
