// SPDX-License-Identifier: Apache-2.0
// Gradients of attention on the device, on tensor cores and without, against the CPU's in double, which tests check
// with differences.
#include <graft/backend/cpu/attention_backward.hpp>
#include <graft/backend/cuda/attention_backward.cuh>
#include <tests/catch.hpp>
#include <tests/cuda/on_device.hpp>

#include <cmath>
#include <limits>
#include <vector>

namespace {

using namespace graft_test;

struct Case {
  index_t heads, kv_heads, dim;
  std::vector<index_t> lengths;
  bool causal = true;
  index_t window = 0;
  bool masked = false;
  index_t gap = 8;  ///< between rows: with 3, no row is aligned and no tensor core is used
};

/// out = softmax(scale q k^T) v of one span; a row that sees nothing is 0.
void attend(AttentionShape const& shape, AttentionSpan const& span, Matrix const& q, Matrix const& k, Matrix const& v,
            Matrix& out) {
  index_t const dim = shape.head_dim;
  for (index_t h = 0; h < shape.heads; ++h)
    for (index_t i = 0; i < span.rows; ++i) {
      index_t const offset = h / (shape.heads / shape.kv_heads) * dim, n = span.first_row + i;
      double total = 0;
      for (index_t j = shape.first_key(i); j < shape.last_key(i, span.rows); ++j) {
        if (span.mask != nullptr && span.mask[i * span.rows + j] == 0) continue;
        double score = 0;
        for (index_t e = 0; e < dim; ++e) score += q(n, h * dim + e) * k(span.first_row + j, offset + e);
        double const p = std::exp(score * shape.scale);
        total += p;
        for (index_t e = 0; e < dim; ++e) out(n, h * dim + e) += p * v(span.first_row + j, offset + e);
      }
      for (index_t e = 0; e < dim && total > 0; ++e) out(n, h * dim + e) /= total;
    }
}

/// dq, dk, dv.
template <class Act>
struct Gradients {
  Buffer<Act> q, k, v;
};

/// What a case reads, adds to and should get. The first row, and one behind each sequence, belong to nobody: they hold
/// NaN, and their gradients stay as they are.
template <class Act>
class Check {
 public:
  explicit Check(Case const& c)
      : c_(c),
        shape_{c.heads, c.kv_heads, c.dim, 1 / std::sqrt(static_cast<double>(c.dim)), c.causal, c.window},
        random_(static_cast<std::uint64_t>(c.dim + c.heads)),
        masks_(c.lengths.size()) {
    index_t row = 1;
    for (std::size_t s = 0; s < c.lengths.size(); ++s) {
      index_t const length = c.lengths[s];
      auto& mask = masks_[s];
      if (c.masked) {
        for (index_t k = 0; k < length * length; ++k) mask.push_back(pick(random_, 0, 3) != 0);
        std::fill(mask.begin(), mask.begin() + length, std::uint8_t{0});  // a row that sees nothing
      }
      nobody_.push_back(row - 1);
      spans_.push_back({nullptr, row, length, 0, length, c.masked ? mask.data() : nullptr});
      row += length + 1;
    }
    nobody_.push_back(row - 1);
    index_t const q_width = c.heads * c.dim, k_width = c.kv_heads * c.dim;
    for (auto* const each : {&q_, &out_, &dout_, &before_.q}) *each = Buffer<Act>(row, q_width, c.gap);
    for (auto* const each : {&k_, &v_, &before_.k, &before_.v}) *each = Buffer<Act>(row, k_width, c.gap);
    for (auto* const each : {&q_, &k_, &v_, &dout_}) fill_normal(each->view(), random_);
    // smaller than the gradients, so that errors of these weigh
    for (auto* const each : {&before_.q, &before_.k, &before_.v}) fill_normal(each->view(), random_, 0, 0.25);
    Matrix out64(row, q_width);
    for (auto const& span : spans_)
      attend(shape_, span, Matrix(q_.view()), Matrix(k_.view()), Matrix(v_.view()), out64);
    for (index_t n = 0; n < row; ++n)
      for (index_t e = 0; e < q_width; ++e) out_.row(n)[e] = static_cast<Act>(static_cast<float>(out64(n, e)));
    Matrix const q64(q_.view()), k64(k_.view()), v64(v_.view()), dout64(dout_.view());
    dq64_ = Matrix(before_.q.view()), dk64_ = Matrix(before_.k.view()), dv64_ = Matrix(before_.v.view());
    CpuBackend<double> cpu;
    attention_backward<double>(cpu, shape_, spans_, q64.view(), k64.view(), v64.view(), std::as_const(out64).view(),
                               dout64.view(), dq64_.view(), dk64_.view(), dv64_.view());
    for (auto* const each : {&q_, &k_, &v_, &out_, &dout_})
      for (index_t const n : nobody_)
        std::fill(each->row(n), each->row(n) + each->view().cols,
                  static_cast<Act>(std::numeric_limits<float>::quiet_NaN()));
  }

  Gradients<Act> run() const {
    Device<Act> device;
    auto resident = spans_;
    for (std::size_t s = 0; s < resident.size(); ++s) resident[s].mask = device.put(masks_[s]);
    auto const put = [&](Buffer<Act> const& host) { return MatrixView<Act const, DeviceSpace>(device.put(host)); };
    auto const dq = device.put(before_.q), dk = device.put(before_.k), dv = device.put(before_.v);
    attention_backward(device.be, shape_, AttentionSpans(device.put(resident), AttentionSpans(std::span(spans_))),
                       put(q_), put(k_), put(v_), put(out_), put(dout_), dq, dk, dv);
    return {device.get(dq), device.get(dk), device.get(dv)};
  }

  void operator()(Gradients<Act> const& found) const {
    INFO("head_dim " << c_.dim << ", heads " << c_.heads << " on " << c_.kv_heads);
    auto const one = [&](Buffer<Act> const& result, Buffer<Act> const& before, Matrix const& correct) {
      CHECK(worst_row(result.view(), correct) <= bound());
      CHECK(result.gaps_untouched());
      for (index_t const n : nobody_) CHECK(same_bits(result.row(n), before.row(n), before.view().cols));
    };
    one(found.q, before_.q, dq64_), one(found.k, before_.k, dk64_), one(found.v, before_.v, dv64_);
  }

 private:
  /// Rounded to Act are what is added to what was there, the output that dout . out is taken from and, on tensor cores,
  /// p and ds. Each error is about as random as the terms of its row and so at most as large as one rounding of the
  /// result; together they are sqrt(3) of it, and 2 is for the worst of many rows. Sums in f32 cancel.
  double bound() const {
    double const rounded = std::same_as<Act, float> ? 0 : 4 * unit_roundoff<Act>();
    return rounded + sum_bound(c_.dim) + sum_bound(200);
  }

  Case c_;
  AttentionShape shape_;
  Random random_;
  std::vector<std::vector<std::uint8_t>> masks_;
  std::vector<AttentionSpan> spans_;
  std::vector<index_t> nobody_;
  Buffer<Act> q_{0, 0}, k_{0, 0}, v_{0, 0}, out_{0, 0}, dout_{0, 0};
  Gradients<Act> before_{{0, 0}, {0, 0}, {0, 0}};
  Matrix dq64_{0, 0}, dk64_{0, 0}, dv64_{0, 0};
};

template <class Act>
void check(Case const& c) {
  Check<Act> const check(c);
  check(check.run());
}

TEMPLATE_TEST_CASE("device: gradients of attention", "", float, bf16, f16) {
  for (index_t const dim : {64, 80, 96, 128}) check<TestType>({2, 1, dim, {33, 1, 70}});
  check<TestType>({2, 1, 64, {33, 1, 70}, true, 0, false, 3});  // rows that are not aligned
  check<TestType>({3, 1, 20, {40}, true, 7});                   // no tensor core has these
}

TEMPLATE_TEST_CASE("device: gradients of attention with windows, masks, all keys, shared keys", "", float, bf16, f16) {
  check<TestType>({6, 2, 64, {130, 17}});
  check<TestType>({2, 2, 64, {200}, true, 33});
  check<TestType>({2, 1, 64, {70, 20}, true, 0, true});
  check<TestType>({2, 2, 64, {70, 20}, false, 0, true});
  check<TestType>({2, 2, 128, {65, 90}, false});
}

TEST_CASE("device: gradients of attention of other heads") {
  check<float>({2, 2, 16, {70, 5}, true, 33});
  check<float>({2, 2, 7, {65}, false});
  check<float>({2, 1, 256, {40, 33}});
  check<bf16>({1, 1, 160, {35}});
  check<float>({8, 1, 8, {34}});
}

#if defined(GRAFT_CUDA_EMULATION)
TEMPLATE_TEST_CASE("emulated: gradients of attention do not depend on the order of threads", "", bf16, f16) {
  Check<TestType> const check({4, 2, 64, {150, 40}});
  auto const first = check.run();
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    emulation::Device::get().seed(seed);
    auto const again = check.run();
    CHECK(same_bits(first.q.view(), again.q.view()));
    CHECK(same_bits(first.k.view(), again.k.view()));
    CHECK(same_bits(first.v.view(), again.v.view()));
  }
}
#endif

}  // namespace
