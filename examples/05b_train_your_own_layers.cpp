// SPDX-License-Identifier: Apache-2.0
// Adapter gradients in a model that is not ours: two Eigen layers, one batch, and two modules of two kinds that learn
// two functions, each from its own rows.
#include <graft/adapter/apply_backward.hpp>
#include <graft/adapter/bank.hpp>
#include <graft/adapter/lora.hpp>
#include <graft/adapter/road.hpp>
#include <graft/backend/cpu/cpu.hpp>
#include <graft/backend/cpu/eigen.hpp>
#include <graft/backend/cpu/low_rank_backward.hpp>
#include <graft/backend/cpu/row_map_backward.hpp>
#include <graft/train/optimizer.hpp>

#include <cstdio>

using namespace graft;
using B = CpuBackend<>;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

int main() {
  // a frozen network  y = W2 tanh(W1 x),  and the places of it that adapters may sit at
  index_t const n = 64, in = 16, hidden = 32, out = 8;
  std::srand(1);
  Matrix const w1 = Matrix::Random(hidden, in) * 0.5f, w2 = Matrix::Random(out, hidden) * 0.5f;
  SiteTable table;
  Site const first = table.add_linear(0, "first", "first", in, hidden);
  Site const second = table.add_linear(0, "second", "second", hidden, out);

  B be;
  Bank<Adapters<RoAdRotation, LoRADelta>, B> bank(table);
  auto lora = make_module<LoRADelta, B>("lora", {.rank = 4, .alpha = 4}, table, {first.index, second.index});
  auto road = make_module<RoAdRotation, B>("road", {.group_size = 8}, table, {first.index, second.index});
  AdamW<float> lora_steps(parameter_ranges(lora)), road_steps(parameter_ranges(road));

  // rows 0..31 are the LoRA's, 32..63 the RoAd's; what they should learn: other weights, and a rotation of the output
  Matrix const x = Matrix::Random(n, in), v1 = w1 + Matrix::Random(hidden, 1) * Matrix::Random(1, in);
  Matrix target(n, out);
  target.topRows(n / 2) = (x.topRows(n / 2) * v1.transpose()).array().tanh().matrix() * w2.transpose();
  Matrix const y0 = (x.bottomRows(n / 2) * w1.transpose()).array().tanh().matrix() * w2.transpose();
  target.bottomRows(n / 2) << -y0.rightCols(out / 2), y0.leftCols(out / 2);

  Plan<B> plan;
  for (int step = 0; step <= 200; ++step) {
    bank.load(be, lora.clone());
    bank.load(be, road.clone());
    SequenceState<B> left(bank.resolve({{"lora"}}), table), right(bank.resolve({{"road"}}), table);
    std::vector<RequestRows<B>> const requests = {{&left, n / 2}, {&right, n / 2}};
    plan.build(requests, PlanUse::training);
    Gradients<B> gradients;
    gradients.want(bank.find("lora"));
    gradients.want(bank.find("road"));

    // forward: our products, graft's adapters behind them; p1, p2 are kept for the way back
    Matrix const p1 = x * w1.transpose();
    Matrix y1 = p1;
    apply_output(be, first, plan, view(x), view(y1));
    Matrix const h = y1.array().tanh();
    Matrix const p2 = h * w2.transpose();
    Matrix y2 = p2;
    apply_output(be, second, plan, view(h), view(y2));
    Matrix dy2 = 2 * (y2 - target) / static_cast<float>(n / 2 * out);

    // and back; dy becomes the gradient of p, the deltas' share of the input's gradient is added to dh
    Matrix dh = Matrix::Zero(n, hidden), dx = Matrix::Zero(n, in);
    apply_output_backward(be, second, plan, view(h), view(p2), view(dy2), view(dh), gradients);
    dh += dy2 * w2;
    Matrix dy1 = dh.array() * (1 - h.array().square());
    apply_output_backward(be, first, plan, view(x), view(p1), view(dy1), view(dx), gradients);

    lora_steps.step(be.executor(), lora.parameters(), gradients.of("lora"), group_rates(1e-2));
    road_steps.step(be.executor(), road.parameters(), gradients.of("road"), group_rates(5e-2));
    auto const loss = (y2 - target).array().square().rowwise().mean();
    if (step % 50 == 0)
      std::printf("step %3d   LoRA %.4f   RoAd %.4f\n", step, static_cast<double>(loss.head(n / 2).mean()),
                  static_cast<double>(loss.tail(n / 2).mean()));
  }
}
