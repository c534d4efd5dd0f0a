// SPDX-License-Identifier: Apache-2.0
// A backend that computes like the one it wraps and notes how to come back: an architecture's forward, run on it,
// is its own gradient. The operations it offers are in recorded_operations.hpp.
#pragma once

#include <graft/adapter/gradients.hpp>
#include <graft/core/arena.hpp>

#include <algorithm>
#include <functional>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace graft {

/// Buffers an architecture takes while it is recorded; they live until the recorder is started anew, and each can have
/// a gradient.
template <class B>
class RecordedMemory {
 public:
  using Act = typename B::Act;
  using View = MatrixView<Act, typename B::Space>;

  template <class T>
  MatrixView<T, typename B::Space> matrix(index_t rows, index_t cols) {
    auto const made = arena_.template matrix<T>(rows, cols);
    if constexpr (std::is_same_v<T, Act>)
      if (made.size() > 0) buffers_.push_back({made.data, made.size(), nullptr, 0});
    return made;
  }
  template <class T>
  VectorView<T, typename B::Space> vector(index_t size) {
    return {matrix<T>(1, size).data, size};
  }

 private:
  template <class>
  friend class Recorder;
  struct Buffer {
    Act* data;
    index_t size;
    Act* gradient;  ///< null until asked for
    index_t writes;
  };
  BasicArena<typename B::Space> arena_;
  std::vector<Buffer> buffers_;  ///< in the order they were taken
};

/// Dropout on what low-rank deltas see: one rate and one key per batch row. The mask is a hash of (key, site, column),
/// so it depends neither on the batch nor on threads, and the way back makes it again (graft/backend/dropout.hpp).
struct RowDropout {
  double const* rates = nullptr;        ///< [n], where the backend's kernels read them
  std::uint64_t const* keys = nullptr;  ///< [n]
  bool any = false;                     ///< whether any rate is above 0
};

/// Runs operations on `backend` at once and keeps a list of their ways back. Use: operations, then `gradient(result)`
/// is filled, then `backward()`, then `gradient(input)` holds dL/dinput. A buffer may be changed in place only by
/// operations that can be undone or have kept what they need; ContractError names the rule where one breaks it.
template <class B>
class Recorder {
 public:
  using Space = typename B::Space;
  using Act = typename B::Act;
  using Real = typename B::Real;
  using View = MatrixView<Act, Space>;
  using ConstView = MatrixView<Act const, Space>;
  using Memory = RecordedMemory<B>;

  /// Gradients of buffers are taken from `gradient_memory`, in the caller's scope.
  Recorder(B& backend, BasicArena<Space>& gradient_memory) : be_(&backend), gradient_memory_(&gradient_memory) {}

  B& backend() { return *be_; }
  Gradients<B>& gradients() { return *gradients_; }
  auto& executor() { return be_->executor(); }
  Memory& arena() { return memory_; }
  /// Buffers outlive the scopes of the forward.
  struct Scope {
    ~Scope() {}
  };
  Scope scope() { return {}; }

  RowDropout dropout;

  /// Forgets everything and starts again, with these gradients to add to; memory is kept.
  void start(Gradients<B>& gradients) {
    gradients_ = &gradients;
    ways_.clear(), aliases_.clear();
    stream_ = nullptr;
    memory_.buffers_.clear();
    memory_scope_.reset();
    memory_scope_.emplace(memory_.arena_);
    sorted_ = 0;
  }

  /// Before its first use: room for what `other` holds, in one piece. Layers are alike.
  void take_size_of(Recorder const& other) {
    if (memory_.arena_.capacity() == 0) memory_.arena_.reserve(other.memory_.arena_.capacity());
  }

  /// Runs the ways back, last operation first.
  void backward() {
    while (!ways_.empty()) {
      ways_.back()();
      ways_.pop_back();
    }
  }

  // What recorded operations are made of.

  void on_way_back(std::function<void()> way) { ways_.push_back(std::move(way)); }

  /// A copy that nobody changes.
  ConstView keep(ConstView x) {
    auto const copied = memory_.arena_.template matrix<Act>(x.rows, x.cols);
    copy(*be_, x, copied);
    return copied;
  }
  /// x, once the way back has checked that nobody changed it since.
  class Unchanged {
   public:
    ConstView view(Recorder& recorder) const {
      expects(recorder.buffer(x_.data).writes == writes_,
              "graft: a forward changed a buffer in place that the way back still needs; give each value a buffer of "
              "its own");
      return x_;
    }

   private:
    friend class Recorder;
    ConstView x_;
    index_t writes_ = 0;
  };
  Unchanged unchanged(ConstView x) {
    Unchanged kept;
    kept.x_ = x;
    kept.writes_ = buffer(x.data).writes;
    return kept;
  }
  /// Notes that an operation changes a buffer that operations before it have written.
  void changes(ConstView x) { ++buffer(x.data).writes; }
  /// Whether x was written to in place, so that only a copy of it stays as it is: the residual stream.
  bool is_stream(ConstView x) { return buffer(x.data).data == stream_; }
  /// Makes memory of the caller the buffer that is added to through a whole forward; operations copy it where they need
  /// it, so its values may be gone on the way back.
  void set_stream(View h) {
    memory_.buffers_.push_back({h.data, h.size(), nullptr, 0});
    stream_ = h.data;
  }
  /// x for the way back: a copy of the residual stream, anything else as it is.
  std::function<ConstView()> input(ConstView x) {
    if (is_stream(x)) return [kept = keep(x)] { return kept; };
    return [this, kept = unchanged(x)] { return kept.view(*this); };
  }

  /// The gradient of a recorded buffer or a part of its rows or columns; zero until something is added.
  View gradient(ConstView x) {
    auto& b = buffer(x.data);
    if (b.gradient == nullptr) {
      b.gradient = gradient_memory_->template allocate<Act>(b.size);
      clear(*be_, VectorView<Act, Space>{b.gradient, b.size});
    }
    return {b.gradient + (x.data - b.data), x.rows, x.cols, x.stride};
  }
  /// Lets the gradient of a whole buffer live in memory of the caller.
  void set_gradient(ConstView x, Act* memory) { buffer(x.data).gradient = memory; }

  /// Says that `copy` holds values of a tensor that lies elsewhere, so that its gradient is that tensor's.
  void alias(void const* copied, void const* tensor) { aliases_.emplace_back(copied, tensor); }
  /// The gradient of a tensor of the model, empty where it is not wanted.
  VectorView<Real, Space> tensor_gradient(void const* tensor) {
    for (auto const& [copied, original] : aliases_)
      if (copied == tensor) tensor = original;
    return gradients_->of_tensor(*be_, tensor);
  }

  // keys and values of the last store_kv, which the next attention reads
  ConstView keys, values;

 private:
  typename Memory::Buffer& buffer(Act const* at) {
    auto& all = memory_.buffers_;
    if (sorted_ != all.size()) {
      std::sort(all.begin(), all.end(), [](auto const& a, auto const& b) { return a.data < b.data; });
      sorted_ = all.size();
    }
    auto const next =
        std::upper_bound(all.begin(), all.end(), at, [](Act const* p, auto const& b) { return p < b.data; });
    expects(next != all.begin() && at < (next - 1)->data + (next - 1)->size,
            "graft: a recorded operation was given a buffer that does not come from the recorder's arena");
    return *(next - 1);
  }

  B* be_;
  BasicArena<Space>* gradient_memory_;
  Gradients<B>* gradients_ = nullptr;
  Memory memory_;
  std::optional<ArenaScope<Space>> memory_scope_;
  std::size_t sorted_ = 0;
  Act const* stream_ = nullptr;
  std::vector<std::function<void()>> ways_;
  std::vector<std::pair<void const*, void const*>> aliases_;
};

}  // namespace graft
