// SPDX-License-Identifier: Apache-2.0
// The emulated device: streams whose work is done late, at random, or when somebody waits for it, kernels, copies,
// events and graphs.
#pragma once

#include <tests/cuda/emulation/block.hpp>
#include <tests/cuda/emulation/memory.hpp>

#include <link.h>

#include <chrono>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace emulation {

/// What the device says of itself. Shared memory is that of the smallest GPU graft supports (sm_75), so that what fits
/// here fits everywhere; few multiprocessors, so that grids made for them stay small.
struct Properties {
  int devices = 1;
  int multiprocessors = 4;
  int compute_major = 9, compute_minor = 0;
  int shared_bytes = 48 << 10;        ///< per block, without asking
  int shared_bytes_optin = 64 << 10;  ///< per block, after cudaFuncSetAttribute
};

/// Work of one stream, in order.
using Work = std::function<std::string()>;  // "" or what went wrong

struct Stream;

/// What was put on a stream, and on others that it was forked to, while it was captured.
struct Graph {
  struct Node {
    Work work;
    std::vector<std::size_t> after;  // nodes before
  };
  std::vector<Node> nodes;
  std::vector<Stream*> forked;
  bool broken = false;  // something was asked for meanwhile that must not be

  /// Whether all that streams were forked for comes before `last`.
  bool joined(std::vector<std::size_t> last) const {
    std::vector<bool> seen(nodes.size());
    while (!last.empty()) {
      std::size_t const node = last.back();
      last.pop_back();
      if (seen[node]) continue;
      seen[node] = true;
      last.insert(last.end(), nodes[node].after.begin(), nodes[node].after.end());
    }
    return std::find(seen.begin(), seen.end(), false) == seen.end();
  }
};

struct Stream {
  std::deque<Work> queue;
  Graph* capture = nullptr;
  std::vector<std::size_t> last;  // nodes of the capture that the next one comes after
  bool blocking = true;           // waits for, and is waited for by, the default stream
};

struct Ticket {
  Stream* stream = nullptr;
  bool done = false;
  std::chrono::steady_clock::time_point time;
};
struct Event {
  std::shared_ptr<Ticket> ticket;
  Graph* capture = nullptr;  // recorded in this one, behind these nodes
  std::vector<std::size_t> last;
};

/// NaN into the __shared__ variables of all kernels. They are the program's only thread-local ones without an initial
/// value, which the linker lays side by side.
inline void poison_shared_variables() {
  struct Place {
    std::byte* data = nullptr;
    std::size_t bytes = 0;
  };
  static Place const place = [] {
    Place found;
    auto const of_program = [](dl_phdr_info* info, std::size_t, void* to) {
      for (int k = 0; k < info->dlpi_phnum; ++k)
        if (auto const& header = info->dlpi_phdr[k]; header.p_type == PT_TLS && info->dlpi_tls_data != nullptr)
          *static_cast<Place*>(to) = {static_cast<std::byte*>(info->dlpi_tls_data) + header.p_filesz,
                                      header.p_memsz - header.p_filesz};
      return 1;  // the libraries come behind it
    };
    dl_iterate_phdr(of_program, &found);
    return found;
  }();
  if (place.bytes != 0) std::memset(place.data, poison_byte, place.bytes);
}

class Device {
 public:
  static Device& get() {
    static Device device;
    return device;
  }

  Properties properties;
  Lots lots;
  bool eager = std::getenv("GRAFT_EMULATION_EAGER") != nullptr;  ///< work is done when it is enqueued: for debuggers

  /// Restarts all lots: the order of threads, blocks and streams.
  void seed(std::uint64_t number) {
    lots.state = 2 * number + 1;
    Block::get().lots.state = (2 * number + 1) * 0x9e3779b97f4a7c15u;
  }

  Stream& stream(Stream* s) { return s != nullptr ? *s : default_; }

  Stream* create(bool blocking) {
    auto* const s = new Stream;
    s->blocking = blocking;
    streams_.insert(s);
    return s;
  }
  void destroy(Stream* s) {
    drain(*s);
    streams_.erase(s);
    delete s;
  }

  void enqueue(Stream* to, Work work) {
    Stream& s = stream(to);
    if (s.capture != nullptr) {
      s.capture->nodes.push_back({std::move(work), s.last});
      s.last = {s.capture->nodes.size() - 1};
      return;
    }
    if (s.blocking && &s != &default_) drain(default_);
    if (&s == &default_)
      for (Stream* const other : streams_) {
        if (!other->blocking) continue;
        if (other->capture != nullptr) {
          fail("the default stream would wait for one that is captured");
          break_captures();
        }
        drain(*other);
      }
    s.queue.push_back(std::move(work));
    // seldom, and then several at once: opening the memory costs more than most kernels
    auto const waiting = static_cast<unsigned>(s.queue.size());
    unsigned const now = eager || waiting > 64 ? waiting : lots.draw(8) == 0 ? lots.draw(waiting + 1) : 0;
    Opened const opened(*this, now > 0);
    for (unsigned k = 0; k < now && !s.queue.empty(); ++k) step(s);
  }

  /// Nodes in any order that their graph allows.
  std::string run_nodes(std::vector<Graph::Node> const& nodes) {
    std::vector<std::size_t> missing(nodes.size()), ready;
    std::vector<std::vector<std::size_t>> next(nodes.size());
    for (std::size_t k = 0; k < nodes.size(); ++k) {
      missing[k] = nodes[k].after.size();
      for (std::size_t const before : nodes[k].after) next[before].push_back(k);
      if (missing[k] == 0) ready.push_back(k);
    }
    while (!ready.empty()) {
      std::swap(ready[lots.draw(static_cast<unsigned>(ready.size()))], ready.back());
      std::size_t const node = ready.back();
      ready.pop_back();
      if (auto error = nodes[node].work(); !error.empty()) return error;
      for (std::size_t const k : next[node])
        if (--missing[k] == 0) ready.push_back(k);
    }
    return {};
  }

  void drain(Stream& s) {
    Opened const opened(*this, !s.queue.empty());
    while (!s.queue.empty()) step(s);
  }
  void drain_all() {
    Opened const opened(*this, true);
    for (;;) {
      std::vector<Stream*> busy;
      if (!default_.queue.empty()) busy.push_back(&default_);
      for (Stream* const s : streams_)
        if (!s->queue.empty()) busy.push_back(s);
      if (busy.empty()) return;
      step(*busy[lots.draw(static_cast<unsigned>(busy.size()))]);
    }
  }
  void wait(Ticket const& ticket) {
    Opened const opened(*this, !ticket.done && !ticket.stream->queue.empty());
    while (!ticket.done && !ticket.stream->queue.empty()) step(*ticket.stream);
  }
  bool capturing() const {
    return std::any_of(streams_.begin(), streams_.end(), [](Stream* s) { return s->capture != nullptr; });
  }
  /// Something that must not be asked for during a capture was: its graph is lost.
  void break_captures() {
    for (Stream* const s : streams_)
      if (s->capture != nullptr) s->capture->broken = true;
  }

  void fail(std::string const& sentence) {
    if (sentence.empty() || !error_.empty()) return;
    error_ = sentence;
    std::fprintf(stderr, "emulation: %s\n", sentence.c_str());
  }
  /// The first thing that went wrong and was not told yet.
  std::string const& error() const { return error_; }
  void forget_error() {
    if (!error_.empty()) told_ = std::exchange(error_, {});
  }
  std::string const& told() const { return error_.empty() ? told_ : error_; }

  /// Runs a whole grid, block after block in random order.
  std::string run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, std::function<void()> const& kernel) {
    std::uint64_t const count = std::uint64_t{grid.x} * grid.y * grid.z;
    // a walk with a stride coprime to the count visits every block once
    std::uint64_t const start =
        count > 1 ? lots.draw(static_cast<unsigned>(std::min<std::uint64_t>(count, 1u << 31))) : 0;
    std::uint64_t stride =
        count > 2 ? lots.draw(static_cast<unsigned>(std::min<std::uint64_t>(count, 1u << 31))) | 1 : 1;
    while (count > 1 && std::gcd(stride, count) != 1) stride += 2;
    gridDim = grid;
    blockDim = block;
    shared_.resize(shared_bytes + 2 * shared_guard + 16);
    std::byte* const begin = shared_.data() + shared_guard - reinterpret_cast<std::uintptr_t>(shared_.data()) % 16 + 16;
    dynamic_shared_ = begin;
    if (lots.draw(8) == 0) poison_shared_variables();  // seldom: all kernels' together are megabytes
    for (std::uint64_t k = 0; k < count; ++k) {
      std::uint64_t const b = (start + k * (stride % count)) % count;
      blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                  static_cast<unsigned>(b / grid.x / grid.y)};
      std::memset(shared_.data(), guard_byte, shared_.size());
      std::memset(begin, poison_byte, shared_bytes);
      std::string error = Block::get().run(
          block, [](void* f) { (*static_cast<std::function<void()> const*>(f))(); },
          const_cast<void*>(static_cast<void const*>(&kernel)));
      auto const wrong = [](std::byte byte) { return byte != std::byte{guard_byte}; };
      if (error.empty() && (std::any_of(shared_.data(), begin, wrong) ||
                            std::any_of(begin + shared_bytes, shared_.data() + shared_.size(), wrong)))
        error = "a kernel wrote outside its " + std::to_string(shared_bytes) + " bytes of dynamic shared memory";
      if (!error.empty())
        return error + " (block " + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
               std::to_string(blockIdx.z) + ")";
    }
    ++launches;
    return Memory::get().check();
  }
  std::byte* dynamic_shared() const { return dynamic_shared_; }

  std::map<void const*, int> shared_limit;  ///< what cudaFuncSetAttribute allowed, by kernel
  std::map<std::byte const*, std::size_t> pinned;
  std::size_t pinned_allocations = 0;      ///< ever made
  std::size_t launches = 0;                ///< kernels that ran
  std::size_t synchronizations = 0;        ///< times the host waited
  std::size_t event_synchronizations = 0;  ///< of these, for one event, behind which a stream may go on
  struct Calls {
    std::size_t kernels = 0, copies = 0, graphs = 0;  ///< put on streams
    std::size_t recorded = 0;                         ///< graphs made ready to be launched
  };
  Calls calls;  ///< of the host, those that are captured not

  bool is_pinned(void const* data) const {
    auto const* const at = static_cast<std::byte const*>(data);
    auto const next = pinned.upper_bound(at);
    return next != pinned.begin() && at < std::prev(next)->first + std::prev(next)->second;
  }

 private:
  static constexpr std::size_t shared_guard = 256;

  /// While it lives, memory may be touched, because kernels run.
  class Opened {
   public:
    Opened(Device& device, bool wanted) : device_(device), outer_(wanted && !device.running_) {
      if (outer_) Memory::get().open(device.running_ = true);
    }
    ~Opened() {
      if (outer_) Memory::get().open(device_.running_ = false);
    }
    Opened(Opened const&) = delete;
    Opened& operator=(Opened const&) = delete;

   private:
    Device& device_;
    bool outer_;
  };

  void step(Stream& s) {
    Work const work = std::move(s.queue.front());
    s.queue.pop_front();
    fail(work());
  }

  Stream default_;
  std::set<Stream*> streams_;
  std::string error_, told_;
  std::vector<std::byte> shared_;
  std::byte* dynamic_shared_ = nullptr;
  bool running_ = false;
};

/// For tests: everything done, nothing written around allocations; "" or what is wrong.
inline std::string finish() {
  Device::get().drain_all();
  Device::get().fail(Memory::get().check());
  std::string const error = Device::get().error();
  Device::get().forget_error();
  return error;
}

}  // namespace emulation
