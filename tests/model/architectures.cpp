// SPDX-License-Identifier: Apache-2.0
// Names of architectures, and the one place where the tests' models are compiled, those of [threads] too.
#include <tests/catch.hpp>
#include <tests/model/model_under_test.hpp>

#include <graft/arch/architectures.hpp>
#include <graft/io/model_files.hpp>
#include <graft/io/peft.hpp>

namespace graft_test {
namespace {

template <class Arch, class Act>
class ModelOf final : public AnyModel<Act> {
 public:
  using B = CpuBackend<Act>;
  using M = Model<Arch, AllAdapters, B>;

  explicit ModelOf(ModelFiles files) : model_(std::move(files.config), std::move(files.weights)) {}
  ModelConfig const& config() const override { return model_.config(); }
  SiteTable const& sites() const override { return model_.sites(); }
  index_t output_width() const override { return model_.ends().output_width(); }
  void load(std::string const& name, std::filesystem::path const& folder) override {
    B be;
    load_adapter(be, model_, name, folder);
  }
  std::unique_ptr<AnyContext<Act>> context(Executor& executor, ContextOptions options) override {
    return std::make_unique<ContextOf>(model_, executor, options);
  }

 private:
  class ContextOf final : public AnyContext<Act> {
   public:
    ContextOf(M& model, Executor& executor, ContextOptions options) : be_(executor), context_(model, be_, options) {}
    KvCache<B>& cache() override { return context_.cache(); }
    Sequence<B> start(std::span<AdapterUse const> adapters) override { return context_.start(adapters); }
    void forward(std::span<SequenceInput<B> const> inputs, std::span<index_t const> wanted,
                 MatrixView<Act> out) override {
      context_.forward(inputs, wanted, out);
    }
    index_t answer_row(std::span<std::int32_t const> tokens) const override { return context_.answer_row(tokens); }
    void classify(std::span<SequenceInput<B> const> inputs, MatrixView<Act> out) override {
      context_.classify(inputs, out);
    }
    void forward_last(std::span<SequenceInput<B> const> inputs, MatrixView<Act> out) override {
      context_.forward_last(inputs, out);
    }

   private:
    B be_;
    Context<M> context_;
  };

  M model_;
};

}  // namespace

template <class Act>
std::unique_ptr<AnyModel<Act>> open(std::filesystem::path const& path) {
  auto files = open_model(path);
  std::string const architecture = files.config.architecture;
  return with_architecture(architecture, [&]<class Arch>() -> std::unique_ptr<AnyModel<Act>> {
    return std::make_unique<ModelOf<Arch, Act>>(std::move(files));
  });
}
template std::unique_ptr<AnyModel<float>> open(std::filesystem::path const& path);
template std::unique_ptr<AnyModel<double>> open(std::filesystem::path const& path);

template <class Act>
std::unique_ptr<AnyModel<Act>> open(Case const& from) {
  auto model = open<Act>(from.folder);
  for (auto const& entry : std::filesystem::directory_iterator(from.folder))
    if (std::string const name = entry.path().filename().string(); name.starts_with("adapter_"))
      model->load(name.substr(8), entry.path());
  return model;
}
template std::unique_ptr<AnyModel<float>> open(Case const& from);
template std::unique_ptr<AnyModel<double>> open(Case const& from);

}  // namespace graft_test

TEST_CASE("an architecture is found by its name") {
  auto const is = []<class Expected>(std::string const& name, std::type_identity<Expected>) {
    return graft::with_architecture(name, []<class Arch>() { return std::is_same_v<Arch, Expected>; });
  };
  for (auto const* name : {"llama", "mistral", "qwen2", "qwen3"}) CHECK(is(name, std::type_identity<graft::Llama>{}));
  CHECK(is("gpt2", std::type_identity<graft::Gpt2>{}));
  CHECK(is("bert", std::type_identity<graft::Bert>{}));
  CHECK(is("roberta", std::type_identity<graft::Bert>{}));
  CHECK_THROWS_WITH(graft::with_architecture("t5", []<class Arch>() { return 0; }),
                    "graft: architecture t5 is not known (llama, mistral, qwen2, qwen3, gpt2, bert, roberta are)");
}
