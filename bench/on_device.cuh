// SPDX-License-Identifier: Apache-2.0
// What the programs for a GPU share: times of what is put on a stream, the bandwidth of a copy, memory that holds
// something.
#pragma once

#include <graft/backend/cuda/cuda_backend.cuh>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <bench/made_up.hpp>
#include <bench/row.hpp>

namespace bench {

using namespace graft;

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
inline double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

inline bool once = false;  ///< --small: things are done once, nothing is warmed up

/// How long f() takes that puts work on the backend's stream: of `calls` calls between two waits.
template <class B>
double seconds_of(B& be, int calls, auto&& f) {
  be.synchronize();
  double const start = now();
  for (int call = 0; call < calls; ++call) f();
  be.synchronize();
  return (now() - start) / calls;
}
/// The median over several turns, after a first one that takes memory and chooses algorithms.
template <class B>
double median_seconds(B& be, int calls, auto&& f) {
  if (once) return seconds_of(be, 1, f);
  std::vector<double> all;
  seconds_of(be, 1, f);
  for (int turn = 0; turn < 7; ++turn) all.push_back(seconds_of(be, calls, f));
  return median(std::move(all));
}

struct Compared {
  double plain, other;  ///< seconds, medians
  double ratio;         ///< other / plain, the median of the turns' own
  double low, high;     ///< the lowest and the highest of these
};
/// Two things in turn, so that what the machine does meanwhile hits both.
template <class B>
Compared compare(B& be, int calls, auto&& plain, auto&& other) {
  if (once) {
    double const first = seconds_of(be, 1, plain), second = seconds_of(be, 1, other);
    return {first, second, second / first, second / first, second / first};
  }
  for (int warm = 0; warm < 2; ++warm) seconds_of(be, 1, plain), seconds_of(be, 1, other);
  std::vector<double> a, b, ratios;
  for (int turn = 0; turn < 9; ++turn) {
    a.push_back(seconds_of(be, calls, plain)), b.push_back(seconds_of(be, calls, other));
    ratios.push_back(b.back() / a.back());
  }
  auto const [low, high] = std::minmax_element(ratios.begin(), ratios.end());
  return {median(a), median(b), median(ratios), *low, *high};
}

__global__ void fill_words(std::uint32_t* words, index_t count) {
  index_t const stride = index_t{gridDim.x} * blockDim.x;
  for (index_t k = index_t{blockIdx.x} * blockDim.x + threadIdx.x; k < count; k += stride) {
    std::uint32_t x = static_cast<std::uint32_t>(k) * 2654435761u + 12345u;
    x = (x ^ (x >> 15)) * 0x85ebca6bu;
    words[k] = (x ^ (x >> 13)) & 0xbfbfbfbfu;
  }
}
/// Random bits, because a GPU multiplies zeros faster than numbers. The second highest bit of each byte is clear: read
/// as f32, bf16 or f16, also as the scale of a quantised block, they are numbers between -2 and 2. bytes % 4 == 0.
template <class B>
void fill(B& be, void* memory, index_t bytes) {
  cuda::launch(fill_words, 1024, 256, 0, be.stream(), static_cast<std::uint32_t*>(memory), bytes / 4);
}
/// `size` elements of the arena with random bits.
template <class T, class B>
T* filled(B& be, index_t size) {
  index_t const bytes = round_up(size * static_cast<index_t>(sizeof(T)), 4);
  auto* const memory = be.arena().template allocate<std::byte>(bytes);
  fill(be, memory, bytes);
  return reinterpret_cast<T*>(memory);
}

/// Bytes per second that the driver's own copy reads and writes; `bytes` from one place to another.
template <class B>
double copy_bandwidth(B& be, index_t bytes) {
  auto const scope = be.scope();
  auto* const from = filled<std::byte>(be, bytes);
  auto* const to = be.arena().template allocate<std::byte>(bytes);
  double const seconds = median_seconds(be, 10, [&] {
    cuda::check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, be.stream()),
                "cudaMemcpyAsync");
  });
  return 2 * static_cast<double>(bytes) / seconds;
}
/// Of the device, not of this process alone.
inline double free_memory() {
  std::size_t free = 0, total = 0;
  cuda::check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<double>(free);
}

/// The command line: names of parts, and --small.
struct Arguments {
  bool small = false;
  std::vector<std::string> parts;

  Arguments(int argc, char** argv) {
    for (int k = 1; k < argc; ++k)
      if (std::string_view(argv[k]) == "--small")
        small = once = true;
      else
        parts.push_back(argv[k]);
  }
  /// Whether this part is asked for; all are where none is named.
  bool wants(std::string_view part) const {
    return parts.empty() || std::find(parts.begin(), parts.end(), part) != parts.end();
  }
};

}  // namespace bench
