// SPDX-License-Identifier: Apache-2.0
// What layers do between products, one kernel per operation of backend/fused_rows.hpp. A value is rounded where it is
// stored, so less often than by the single steps; in f32 the results are theirs. What a map makes is rounded as if it
// were stored: whether a map waits depends on what other rows have, its result must not.
#pragma once

#include <graft/backend/cuda/elementwise.cuh>
#include <graft/backend/cuda/row_map.cuh>
#include <graft/backend/fused_rows.hpp>

namespace graft {
namespace cuda {

/// N columns of a row behind its map, in whole loads that do not wait for each other; S is what the map is stored in.
template <class S, int N, class T>
__device__ void load_mapped_whole(RowMapRow<float const> const& map, T const* row, index_t first, float (&to)[N]) {
  auto const stored = [first](Numbers<float> const& vector) {
    return Stored<N, S>(vector != nullptr ? vector.template as<S>() + first : nullptr);
  };
  Stored<N, T> const own(row + first), other(map.d != nullptr ? row + partner_column(first, map.group) : nullptr);
  auto const c1 = stored(map.c1), d = stored(map.d), e = stored(map.e);
#pragma unroll
  for (int k = 0; k < N; ++k) to[k] = to_real(from_real<T>(map_float(own[k], other[k], c1[k], d[k], e[k])));
}

/// Columns [first, first + N) of a row behind its map (null: none; successors are the caller's). The row itself is only
/// read, so partners need not wait for each other.
template <int N, class T>
__device__ void load_mapped(RowMapRow<float const> const* map, T const* row, index_t first, index_t cols, bool whole,
                            float (&to)[N]) {
  if (map == nullptr) return load_columns(row, first, cols, whole, to);
  bool const aligned = aligned16(map->c1, map->d, map->e);
  if (whole && aligned && first + N <= cols && (map->d == nullptr || map->group / 2 % N == 0))
    return map->narrow() ? load_mapped_whole<bf16>(*map, row, first, to)
                         : load_mapped_whole<float>(*map, row, first, to);
  load_columns(row, first, cols, whole, to);
  float other[N] = {}, c1[N], d[N], e[N];
  load_present(map->c1, first, cols, aligned, c1);
  load_present(map->d, first, cols, aligned, d);
  load_present(map->e, first, cols, aligned, e);
  if (map->d != nullptr)
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (first + k < cols) other[k] = to_real(row[partner_column(first + k, map->group)]);
#pragma unroll
  for (int k = 0; k < N; ++k) to[k] = to_real(from_real<T>(map_float(to[k], other[k], c1[k], d[k], e[k])));
}

__device__ inline RowMapRow<float const> const* map_of(RowMapBatch<float> const& maps, index_t row) {
  return maps.request != nullptr ? maps.row(row) : nullptr;
}

/// h += map(x) in row blockIdx.x, by all threads of the block; each(value) sees a thread's columns as they are stored.
template <class Act, class Each>
__device__ void add_mapped_row(RowMapBatch<float> const& maps, MatrixView<Act, DeviceSpace> x,
                               MatrixView<Act, DeviceSpace> h, bool whole, Each const& each) {
  constexpr int n = 8;
  index_t const row = blockIdx.x, size = h.cols;
  auto const* map = map_of(maps, row);
  if (map != nullptr && map->next != nullptr) {
    map_row(*map, x.row(row), 0, size);
    map = nullptr;
  }
  float v[n], w[n];
  for (index_t k = n * index_t{threadIdx.x}; k < size; k += n * index_t{blockDim.x}) {
    load_mapped(map, static_cast<Act const*>(x.row(row)), k, size, whole, v);
    load_columns(h.row(row), k, size, whole, w);
    for (int j = 0; j < n; ++j) {
      v[j] = to_real(from_real<Act>(v[j] + w[j]));  // the norm is that of what is stored
      each(v[j]);
    }
    store_columns(v, k, size, whole, h.row(row));
  }
}

/// A row per block. Without weights no norm is made, and y is not written.
template <class Act>
__global__ void __launch_bounds__(most_row_threads, 1)
    add_mapped_norm_rows(RowMapBatch<float> maps, MatrixView<Act, DeviceSpace> x, MatrixView<Act, DeviceSpace> h,
                         float const* weight, float eps, MatrixView<Act, DeviceSpace> y, bool whole) {
  constexpr int n = 8;
  index_t const row = blockIdx.x, size = h.cols;
  float squares = 0, v[n], w[n];
  add_mapped_row(maps, x, h, whole, [&](float value) { squares += value * value; });
  if (weight == nullptr) return;
  float const scale = 1 / sqrtf(block_sum(squares) / static_cast<float>(size) + eps);
  for (index_t k = n * index_t{threadIdx.x}; k < size; k += n * index_t{blockDim.x}) {  // a thread reads what it wrote
    load_columns(h.row(row), k, size, whole, v);
    load_columns(weight, k, size, whole, w);
    for (int j = 0; j < n; ++j) v[j] = v[j] * scale * w[j];
    store_columns(v, k, size, whole, y.row(row));
  }
}

/// A row per block.
template <class Act>
__global__ void __launch_bounds__(most_row_threads, 1)
    add_mapped_layer_norm_rows(RowMapBatch<float> maps, MatrixView<Act, DeviceSpace> x, MatrixView<Act, DeviceSpace> h,
                               float const* weight, float const* bias, float eps, MatrixView<Act, DeviceSpace> y,
                               bool whole) {
  float sum = 0;
  add_mapped_row(maps, x, h, whole, [&](float value) { sum += value; });
  layer_norm_row(sum, static_cast<Act const*>(h.row(blockIdx.x)), h.cols, weight, bias, eps, whole, y.row(blockIdx.x));
}

inline constexpr int gated_threads = 128, gated_columns = 8;

/// Row blockIdx.x, chunk blockIdx.y of columns.
template <class Act>
__global__ void activate_mapped_rows(Activation f, RowMapBatch<float> maps, MatrixView<Act, DeviceSpace> x,
                                     MatrixView<Act, DeviceSpace> out, bool whole) {
  constexpr int n = gated_columns;
  index_t const row = blockIdx.x, chunk = n * gated_threads;
  index_t first = blockIdx.y * chunk, last = first + chunk < out.cols ? first + chunk : out.cols;
  auto const* map = map_of(maps, row);
  if (map != nullptr && map->next != nullptr) {
    if (blockIdx.y != 0) return;  // one block has the row, because successors pair other columns
    first = 0, last = out.cols;
    map_row(*map, x.row(row), 0, out.cols);
    map = nullptr;
  }
  for (index_t k = first + n * index_t{threadIdx.x}; k < last; k += chunk) {
    float v[n];
    load_mapped(map, static_cast<Act const*>(x.row(row)), k, out.cols, whole, v);
    for (float& each : v) each = graft::activate(f, each);
    store_columns(v, k, out.cols, whole, out.row(row));
  }
}

/// Row blockIdx.x, chunk blockIdx.y of columns.
template <class Act>
__global__ void activate_gated_mapped_rows(Activation f, RowMapBatch<float> gate_maps,
                                           MatrixView<Act, DeviceSpace> gate, RowMapBatch<float> up_maps,
                                           MatrixView<Act, DeviceSpace> up, MatrixView<Act, DeviceSpace> out,
                                           bool whole) {
  constexpr int n = gated_columns;
  index_t const row = blockIdx.x, chunk = n * gated_threads;
  auto const *gate_map = map_of(gate_maps, row), *up_map = map_of(up_maps, row);
  index_t first = blockIdx.y * chunk, last = first + chunk < out.cols ? first + chunk : out.cols;
  if ((gate_map != nullptr && gate_map->next != nullptr) || (up_map != nullptr && up_map->next != nullptr)) {
    if (blockIdx.y != 0) return;  // one block has the row, because successors pair other columns
    first = 0, last = out.cols;
    if (gate_map != nullptr) map_row(*gate_map, gate.row(row), 0, out.cols);
    if (up_map != nullptr) map_row(*up_map, up.row(row), 0, out.cols);
    gate_map = up_map = nullptr;
  }
  for (index_t k = first + n * index_t{threadIdx.x}; k < last; k += chunk) {
    float g[n], u[n];
    load_mapped(gate_map, static_cast<Act const*>(gate.row(row)), k, out.cols, whole, g);
    load_mapped(up_map, static_cast<Act const*>(up.row(row)), k, out.cols, whole, u);
    for (int j = 0; j < n; ++j) g[j] = graft::activate(f, g[j]) * u[j];
    store_columns(g, k, out.cols, whole, out.row(row));
  }
}

inline constexpr int head_threads = 128;
/// Threads of a head when each has packs of N columns.
template <int N>
inline constexpr int head_lanes = N == 1 ? 32 : 8;
template <int N>
inline constexpr int heads_at_once = head_threads / head_lanes<N>;

/// A row of q, k or v behind its map, which has no successors.
template <class Act>
struct MappedRow {
  Act const* row;
  index_t cols;
  RowMapRow<float const> map;  ///< a copy, which no store can change

  __device__ MappedRow(MatrixView<Act, DeviceSpace> x, index_t n, RowMapRow<float const> const* by)
      : row(x.row(n)), cols(x.cols) {
    if (by != nullptr) map = *by;
  }
  /// Columns [first, first + N), aligned to whole loads.
  template <int N>
  __device__ void load(index_t first, float (&to)[N]) const {
    if (map.identity()) return load_columns(row, first, cols, true, to);
    load_mapped(&map, row, first, cols, true, to);
  }
};

/// q, k or v and its maps.
template <class Act>
struct MappedRows {
  MatrixView<Act, DeviceSpace> x;
  RowMapBatch<float> maps;
};

/// v = v scale weight[first...]: a head's norm, where there is one.
template <int N>
__device__ inline void scale_columns(float (&v)[N], float scale, float const* weight, index_t first) {
  if (weight == nullptr) return;
  float w[N];
  load(weight + first, w);
#pragma unroll
  for (int k = 0; k < N; ++k) v[k] = v[k] * scale * w[k];
}

/// The heads of a row: those of q, of k, of v, each by its own lanes, which load N columns at once. Block (row of a
/// span, some heads). N > 1: heads, angles and all that is read lie in whole packs.
template <int N, class Act>
__global__ void __launch_bounds__(head_threads)
    norm_rotate_store_heads(float const* q_norm, float const* k_norm, float eps,
                            MatrixView<Act const, DeviceSpace> cosine, MatrixView<Act const, DeviceSpace> sine,
                            int head_dim, int heads, int kv_heads, KvView<Act> kv, AttentionSpan const* spans,
                            unsigned max_rows, MappedRows<Act> q, MappedRows<Act> k, MappedRows<Act> v,
                            MatrixView<Act, DeviceSpace> out) {
  constexpr int lanes = head_lanes<N>, at_once = heads_at_once<N>;
  auto const span = spans[blockIdx.x / max_rows];
  index_t const r = blockIdx.x % max_rows, n = span.first_row + r;
  if (r >= span.rows) return;
  index_t const all = heads + 2 * kv_heads;
  auto const *q_map = map_of(q.maps, n), *k_map = map_of(k.maps, n), *v_map = map_of(v.maps, n);
  index_t first = index_t{blockIdx.y} * at_once, last = first + at_once < all ? first + at_once : all;
  auto const chained = [](RowMapRow<float const> const* map) { return map != nullptr && map->next != nullptr; };
  if (chained(q_map) || chained(k_map) || chained(v_map)) {
    if (blockIdx.y != 0) return;  // one block has the row, because successors pair columns of other heads
    first = 0, last = all;
    if (chained(q_map)) map_row(*q_map, q.x.row(n), 0, q.x.cols), q_map = nullptr;
    if (chained(k_map)) map_row(*k_map, k.x.row(n), 0, k.x.cols), k_map = nullptr;
    if (chained(v_map)) map_row(*v_map, v.x.row(n), 0, v.x.cols), v_map = nullptr;
  }
  index_t const token = span.first_token + r;
  bool const stored = token >= 0;  // else the row fills up the batch
  auto const at = static_cast<unsigned>(token), page_tokens = static_cast<unsigned>(kv.page_tokens);
  index_t const slot = at % page_tokens;
  std::int32_t const page = stored ? span.pages[at / page_tokens] : -1;
  if (!stored && last > heads) last = heads;
  index_t const own = N * (threadIdx.x % lanes), step = N * lanes;
  for (index_t start = first; start < last; start += at_once) {
    index_t const head = start + threadIdx.x / lanes;
    bool const there = head < last, is_query = head < heads, is_value = head >= heads + kv_heads;
    index_t const offset = (is_query ? head : is_value ? head - heads - kv_heads : head - heads) * head_dim;
    MappedRow<Act> const x(is_query ? q.x : is_value ? v.x : k.x, n, is_query ? q_map : is_value ? v_map : k_map);
    float const* const weight = is_query ? q_norm : is_value ? nullptr : k_norm;
    float scale = 1;
    if (q_norm != nullptr || k_norm != nullptr) {
      float squares = 0;
      if (there && weight != nullptr)
        for (index_t c = own; c < head_dim; c += step) {
          float some[N];
          x.load(offset + c, some);
#pragma unroll
          for (int j = 0; j < N; ++j) squares += some[j] * some[j];
        }
      scale = 1 / sqrtf(lanes_sum<lanes>(squares) / static_cast<float>(head_dim) + eps);
    }
    if (!there) continue;
    Act* const to = (is_query ? out.row(n) : is_value ? kv.value(page, slot) : kv.key(page, slot)) + offset;
    bool const whole = N == 1 || aligned16(to);         // pages lie where the cache puts them
    index_t const angles = is_value ? 0 : cosine.cols;  // the rest of a head is only copied
    for (index_t c = own; c < angles; c += step) {      // a lane has both of a pair
      float a[N], b[N], co[N], si[N], low[N], high[N];
      x.load(offset + c, a), x.load(offset + c + angles, b);
      load(cosine.row(n) + c, co), load(sine.row(n) + c, si);
      scale_columns(a, scale, weight, c), scale_columns(b, scale, weight, c + angles);
#pragma unroll
      for (int j = 0; j < N; ++j) low[j] = a[j] * co[j] - b[j] * si[j], high[j] = b[j] * co[j] + a[j] * si[j];
      store_columns(low, c, head_dim, whole, to), store_columns(high, c + angles, head_dim, whole, to);
    }
    for (index_t c = 2 * angles + own; c < head_dim; c += step) {
      float some[N];
      x.load(offset + c, some);
      scale_columns(some, scale, weight, c);
      store_columns(some, c, head_dim, whole, to);
    }
  }
}

template <class Act>
void launch_add(CudaBackend<Act>& be, Unmapped<CudaBackend<Act>> const& x, MatrixView<Act, DeviceSpace> h,
                float const* weight, double eps, MatrixView<Act, DeviceSpace> y) {
  bool const whole = aligned16(x.x) && aligned16(h) && aligned16(y) && aligned16(weight);
  launch(add_mapped_norm_rows<Act>, grid_of(h.rows), threads_for(h.cols), 0, be.stream(), present_maps(x.maps), x.x, h,
         weight, static_cast<float>(eps), y, whole);
}

}  // namespace cuda

template <class Act>
inline constexpr bool maps_can_wait<CudaBackend<Act>> = true;

// Each in one kernel: see backend/fused_rows.hpp.

template <class Act>
void add_mapped(CudaBackend<Act>& be, Unmapped<CudaBackend<Act>> const& x, MatrixView<Act, DeviceSpace> h) {
  cuda::launch_add(be, x, h, nullptr, 0, MatrixView<Act, DeviceSpace>{});
}

template <class Act>
void add_mapped_norm(CudaBackend<Act>& be, Unmapped<CudaBackend<Act>> const& x, MatrixView<Act, DeviceSpace> h,
                     VectorView<float const, DeviceSpace> weight, double eps, MatrixView<Act, DeviceSpace> y) {
  cuda::launch_add(be, x, h, weight.data, eps, y);
}

/// y may be h.
template <class Act>
void add_mapped_layer_norm(CudaBackend<Act>& be, Unmapped<CudaBackend<Act>> const& x, MatrixView<Act, DeviceSpace> h,
                           VectorView<float const, DeviceSpace> weight, VectorView<float const, DeviceSpace> bias,
                           double eps, MatrixView<Act, DeviceSpace> y) {
  bool const whole =
      cuda::aligned16(x.x) && cuda::aligned16(h) && cuda::aligned16(y) && cuda::aligned16(weight.data, bias.data);
  cuda::launch(cuda::add_mapped_layer_norm_rows<Act>, cuda::grid_of(h.rows), cuda::threads_for(h.cols), 0, be.stream(),
               cuda::present_maps(x.maps), x.x, h, weight.data, bias.data, static_cast<float>(eps), y, whole);
}

/// Into memory of the caller's scope, because partners of a map lie in columns of other blocks.
template <class Act>
MatrixView<Act, DeviceSpace> activate_mapped(CudaBackend<Act>& be, Activation f, Unmapped<CudaBackend<Act>> const& x) {
  auto const out = be.arena().template matrix<Act>(x.x.rows, x.x.cols);
  bool const whole = cuda::aligned16(x.x) && cuda::aligned16(out);
  auto const grid = cuda::grid_of(out.rows, ceil_div(out.cols, cuda::gated_threads * cuda::gated_columns));
  cuda::launch(cuda::activate_mapped_rows<Act>, grid, cuda::gated_threads, 0, be.stream(), f,
               cuda::present_maps(x.maps), x.x, out, whole);
  return out;
}
/// The same.
template <class Act>
MatrixView<Act, DeviceSpace> activate_gated_mapped(CudaBackend<Act>& be, Activation f,
                                                   Unmapped<CudaBackend<Act>> const& gate,
                                                   Unmapped<CudaBackend<Act>> const& up) {
  auto const out = be.arena().template matrix<Act>(gate.x.rows, gate.x.cols);
  bool const whole = cuda::aligned16(gate.x) && cuda::aligned16(up.x) && cuda::aligned16(out);
  auto const grid = cuda::grid_of(out.rows, ceil_div(out.cols, cuda::gated_threads * cuda::gated_columns));
  cuda::launch(cuda::activate_gated_mapped_rows<Act>, grid, cuda::gated_threads, 0, be.stream(), f,
               cuda::present_maps(gate.maps), gate.x, cuda::present_maps(up.maps), up.x, out, whole);
  return out;
}

/// q goes into memory of the caller's scope, because partners of a map may lie in other heads.
template <class Act>
MatrixView<Act, DeviceSpace> norm_rotate_store(CudaBackend<Act>& be, VectorView<float const, DeviceSpace> q_norm,
                                               VectorView<float const, DeviceSpace> k_norm, double eps,
                                               MatrixView<Act const, DeviceSpace> cosine,
                                               MatrixView<Act const, DeviceSpace> sine, index_t head_dim,
                                               KvView<Act> const& kv, AttentionSpans const& spans,
                                               Unmapped<CudaBackend<Act>> const& q, Unmapped<CudaBackend<Act>> const& k,
                                               Unmapped<CudaBackend<Act>> const& v) {
  auto const out = be.arena().template matrix<Act>(q.x.rows, q.x.cols);
  auto const rows = [](Unmapped<CudaBackend<Act>> const& u) {
    return cuda::MappedRows<Act>{u.x, cuda::present_maps(u.maps)};
  };
  index_t const heads = q.x.cols / head_dim, kv_heads = k.x.cols / head_dim;
  auto const run = [&](auto kernel, int heads_at_once) {
    auto const grid = cuda::grid_of(static_cast<index_t>(spans.size()) * spans.max_rows,
                                    ceil_div(heads + 2 * kv_heads, heads_at_once));
    cuda::launch(kernel, grid, cuda::head_threads, 0, be.stream(), q_norm.data, k_norm.data, static_cast<float>(eps),
                 cosine, sine, static_cast<int>(head_dim), static_cast<int>(heads), static_cast<int>(kv_heads), kv,
                 spans.data(), static_cast<unsigned>(spans.max_rows), rows(q), rows(k), rows(v), out);
  };
  constexpr int pack = 8;
  if (head_dim % pack == 0 && cosine.cols % pack == 0 && cuda::aligned16(cosine) && cuda::aligned16(sine) &&
      cuda::aligned16(q.x) && cuda::aligned16(k.x) && cuda::aligned16(v.x) && cuda::aligned16(q_norm.data, k_norm.data))
    run(cuda::norm_rotate_store_heads<pack, Act>, cuda::heads_at_once<pack>);
  else
    run(cuda::norm_rotate_store_heads<1, Act>, cuda::heads_at_once<1>);
  return out;
}

}  // namespace graft
