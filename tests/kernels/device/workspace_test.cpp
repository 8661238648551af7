// What the ops say that they take of the workspace is what they take, to the byte.

#include "kernels/attention/attention.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/layers/rmsnorm.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/moc/products.h"
#include "kernels/products/matmul.h"
#include "tests/kernels/devices.h"

namespace chaski {
namespace {

class OpWorkspaceTest : public test::OpTest {
 protected:
  Tensor operand(Shape shape) { return zeros(shape, GetParam().activations); }

  // The most that was taken while `work` ran on a device that nothing ran on before.
  template <typename Work>
  std::int64_t taken_by(int threads, const Work& work) {
    use_threads(threads);
    work();
    device().synchronize();
    return device().workspace().largest_used();
  }
};

CHASKI_ON_ALL_DEVICES(OpWorkspaceTest);

TEST_P(OpWorkspaceTest, OfAttention) {
  const DType type = GetParam().activations;
  for (const int threads : {1, 2}) {
    for (const AttentionShape shape :
         {AttentionShape{2, 19, 4, 2, 8}, AttentionShape{1, 3, 3, 3, 5}}) {
      for (const AttentionPass pass : {AttentionPass::forward, AttentionPass::backward}) {
        const std::int64_t taken = taken_by(threads, [&] {
          const Tensor qkv = operand({shape.num_tokens(), shape.qkv_size()});
          const Tensor out = operand({shape.num_tokens(), shape.query_size()});
          const Tensor log_sum_exp = zeros({shape.num_tokens() * shape.num_heads});
          if (pass == AttentionPass::forward) {
            attention_forward(shape, qkv, {}, out, log_sum_exp);
          } else {
            const Tensor dqkv = operand({shape.num_tokens(), shape.qkv_size()});
            attention_backward(shape, qkv, {}, out, log_sum_exp, out, dqkv);
          }
        });
        EXPECT_EQ(taken, attention_workspace_bytes(device(), pass, shape, type));
        if (on_cpu()) continue;
        EXPECT_GE(taken,
                  attention_workspace_bytes(*Device::create_planned_gpu(), pass, shape, type));
      }
    }
  }
}

TEST_P(OpWorkspaceTest, OfTheHeadAndItsLoss) {
  const DType type = GetParam().activations;
  for (const HeadLossSize size :
       {HeadLossSize{9, 8, 33, type, 4}, HeadLossSize{5, 24, 17, type, 512}}) {
    for (const bool training : {false, true}) {
      const std::int64_t taken = taken_by(1, [&] {
        HeadLoss head;
        head.hidden = operand({size.num_tokens, size.hidden_size});
        head.weight = operand({size.vocab_size, size.hidden_size});
        head.targets = zeros({size.num_tokens}, DType::i32);
        head.losses = zeros({size.num_tokens});
        head.chunk = size.chunk;
        if (!training) return head_loss_forward(head);
        head_loss_forward_backward(head, 1.0f, operand({size.num_tokens, size.hidden_size}),
                                   zeros({size.vocab_size, size.hidden_size}));
      });
      const std::int64_t told = head_loss_workspace_bytes(device(), size, training);
      if (on_cpu()) {
        // Products that oneDNN makes without scratch memory are counted with a cache line.
        EXPECT_LE(taken, told);
        EXPECT_GE(taken, told - Device::kAlignment);
      } else {
        EXPECT_EQ(taken, told);
        EXPECT_EQ(told, head_loss_workspace_bytes(*Device::create_planned_gpu(), size, training));
      }
    }
  }
}

TEST_P(OpWorkspaceTest, OfTheProductsOfMoc) {
  if (!on_cpu()) GTEST_SKIP() << "on the CPU only";
  for (const int threads : {1, 2}) {
    for (const std::int64_t tokens : {3, 700}) {
      for (const MocPass pass : {MocPass::forward, MocPass::backward}) {
        const MocShape shape = {100, 20, MocPattern::topk, MocScore::gate, MocIndex::uint16};
        constexpr std::int64_t kHidden = 40;
        const std::int64_t taken = taken_by(threads, [&] {
          const Tensor x = operand({tokens, kHidden});
          const Tensor out = operand({tokens, kHidden});
          const MocWeights weights = {operand({100, kHidden}), operand({100, kHidden}),
                                      operand({kHidden, 100})};
          const MocKept kept = {operand({tokens, 20}),
                                operand({tokens, 20}),
                                {},
                                {},
                                zeros({tokens, shape.index_bytes()}, DType::u8)};
          if (pass == MocPass::forward) {
            moc_products_forward(shape, x, operand({tokens, 100}), weights, kept, out);
          } else {
            moc_products_backward(shape, x, x, weights, kept, weights, out);
          }
        });
        EXPECT_EQ(taken, moc_products_workspace_bytes(device(), pass, shape, kHidden, tokens));
      }
    }
  }
}

TEST_P(OpWorkspaceTest, OfNormsAndSums) {
  for (const std::int64_t rows : {1, 40, 300}) {
    constexpr std::int64_t kHidden = 24;
    const std::int64_t taken = taken_by(2, [&] {
      const Tensor x = operand({rows, kHidden});
      rmsnorm_backward(x, operand({kHidden}), zeros({rows}), operand({rows, kHidden}),
                       operand({rows, kHidden}), zeros({kHidden}));
    });
    EXPECT_EQ(taken, rmsnorm_backward_workspace_bytes(device(), rows, kHidden));
  }
  for (const std::int64_t count : {7, 200000}) {
    const std::int64_t taken = taken_by(2, [&] { sum_of_squares(zeros({count})); });
    EXPECT_EQ(taken, sum_workspace_bytes(device(), count));
  }
}

TEST_P(OpWorkspaceTest, OfLinearLayers) {
  constexpr std::int64_t kTokens = 6;
  constexpr std::int64_t kIn = 10;
  constexpr std::int64_t kOut = 7;
  for (const LinearPass pass :
       {LinearPass::forward, LinearPass::backward_input, LinearPass::backward_weight}) {
    const std::int64_t taken = taken_by(1, [&] {
      const Tensor x = operand({kTokens, kIn});
      const Tensor weight = operand({kOut, kIn});
      const Tensor y = operand({kTokens, kOut});
      if (pass == LinearPass::forward) linear_forward(x, weight, y);
      if (pass == LinearPass::backward_input) linear_backward_input(y, weight, x);
      if (pass == LinearPass::backward_weight) linear_backward_weight(y, x, zeros({kOut, kIn}));
    });
    const std::int64_t told = linear_workspace_bytes(device(), pass, kTokens, kIn, kOut);
    EXPECT_LE(taken, told);
    EXPECT_GE(taken, told - (on_cpu() ? Device::kAlignment : 0));
  }
}

TEST(PlannedGpu, RefusesToWork) {
  const auto gpu = Device::create_planned_gpu();
  EXPECT_TRUE(gpu->is_planned());
  EXPECT_THROW(gpu->allocate(DType::f32, {1}, MemoryCategory::weights), std::runtime_error);
}

}  // namespace
}  // namespace chaski
