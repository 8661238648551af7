// Ops on devices that only count: the workspace that they take is, to the byte, what they take on
// the device that computes; what they state of their work is what is known of it.

#include <cstring>
#include <functional>
#include <map>
#include <string>

#include "kernels/attention/attention.h"
#include "kernels/elementwise/elementwise.h"
#include "kernels/layers/embedding.h"
#include "kernels/layers/rmsnorm.h"
#include "kernels/attention/rotary.h"
#include "kernels/layers/swiglu.h"
#include "kernels/loss/cross_entropy.h"
#include "kernels/loss/loss_totals.h"
#include "kernels/moc/decode.h"
#include "kernels/moc/products.h"
#include "kernels/optimizer/adamw.h"
#include "kernels/products/matmul.h"
#include "tests/kernels/devices.h"

namespace chaski {
namespace {

// Zeros on a device, for as long as this lives.
class Operands {
 public:
  Operands(Device& device, DType activations) : device_(device), activations_(activations) {}

  Tensor operator()(Shape shape) { return zeros(shape, activations_); }
  Tensor zeros(Shape shape, DType type = DType::f32) {
    buffers_.push_back(device_.allocate(type, shape, MemoryCategory::activations));
    return buffers_.back().tensor();
  }

 private:
  Device& device_;
  DType activations_;
  std::vector<Buffer> buffers_;
};

class CountingTest : public test::OpTest {
 protected:
  void expect_as_counted(const std::function<void(Operands&)>& work) {
    for (const int threads : {1, 2}) {
      use_threads(threads);
      const std::int64_t taken = workspace_of(device(), work);
      const auto counting = Device::create_counting(device());
      EXPECT_EQ(workspace_of(*counting, work), taken) << threads << " threads";
      EXPECT_EQ(counting->memory().peak(MemoryCategory::activations),
                device().memory().peak(MemoryCategory::activations));
      const auto elsewhere = Device::create_counting(GetParam().backend, threads);
      EXPECT_LE(workspace_of(*elsewhere, work), taken) << "without cuDNN";
    }
  }

 private:
  std::int64_t workspace_of(Device& device, const std::function<void(Operands&)>& work) const {
    Operands operands(device, GetParam().activations);
    work(operands);
    device.synchronize();
    return device.workspace().largest_used();
  }
};

CHASKI_ON_ALL_DEVICES(CountingTest);

TEST_P(CountingTest, WorkspaceOfAttention) {
  for (const AttentionShape shape :
       {AttentionShape{2, 19, 4, 2, 8}, AttentionShape{1, 3, 3, 3, 5}}) {
    expect_as_counted([&](Operands& operand) {
      attention_forward(shape, operand({shape.num_tokens(), shape.qkv_size()}), {},
                        operand({shape.num_tokens(), shape.query_size()}),
                        operand.zeros({shape.num_tokens() * shape.num_heads}));
    });
    expect_as_counted([&](Operands& operand) {
      const Tensor qkv = operand({shape.num_tokens(), shape.qkv_size()});
      const Tensor out = operand({shape.num_tokens(), shape.query_size()});
      attention_backward(shape, qkv, {}, out, operand.zeros({shape.num_tokens() * shape.num_heads}),
                         out, operand({shape.num_tokens(), shape.qkv_size()}));
    });
  }
}

TEST_P(CountingTest, WorkspaceOfTheHeadAndItsLoss) {
  struct Size {
    std::int64_t tokens, hidden, vocabulary, chunk;
  };
  for (const Size size : {Size{9, 8, 33, 4}, Size{5, 24, 17, 512}, Size{40, 24, 170, 30}}) {
    for (const bool training : {false, true}) {
      expect_as_counted([&](Operands& operand) {
        HeadLoss head;
        head.hidden = operand({size.tokens, size.hidden});
        head.weight = operand({size.vocabulary, size.hidden});
        head.targets = operand.zeros({size.tokens}, DType::i32);
        head.losses = operand.zeros({size.tokens});
        head.chunk = size.chunk;
        if (training) {
          head_loss_forward_backward(head, 1.0f, operand({size.tokens, size.hidden}),
                                     operand.zeros({size.vocabulary, size.hidden}));
        } else {
          head_loss_forward(head);
        }
        add_loss_totals(head.losses, head.targets, operand.zeros({2}, DType::f64));
      });
    }
  }
}

TEST_P(CountingTest, WorkspaceOfMoc) {
  constexpr std::int64_t kHidden = 40;
  const MocShape shape = {100, 20, MocPattern::topk, MocScore::gate, MocIndex::uint16};
  for (const std::int64_t tokens : {3, 700}) {
    const auto kept_of = [&](Operands& operand) {
      return MocKept{operand({tokens, 20}),
                     operand({tokens, 20}),
                     {},
                     {},
                     operand.zeros({tokens, shape.index_bytes()}, DType::u8)};
    };
    expect_as_counted([&](Operands& operand) {
      const MocKept kept = kept_of(operand);
      moc_forward(shape, operand({tokens, 200}), kept, operand({tokens, 100}));
      moc_backward(shape, kept, operand({tokens, 100}), operand({tokens, 200}), {});
    });
    expect_as_counted([&](Operands& operand) {
      moc_count(shape, kept_of(operand), operand.zeros({100}, DType::i32),
                operand.zeros({2}, DType::i32));
    });
    if (!on_cpu()) continue;
    for (const bool forward : {false, true}) {
      expect_as_counted([&](Operands& operand) {
        const Tensor x = operand({tokens, kHidden});
        const MocWeights weights = {operand({100, kHidden}), operand({100, kHidden}),
                                    operand({kHidden, 100})};
        const MocKept kept = kept_of(operand);
        const Tensor out = operand({tokens, kHidden});
        if (forward) {
          moc_products_forward(shape, x, operand({tokens, 100}), weights, kept, out);
        } else {
          moc_products_backward(shape, x, x, weights, kept, weights, out);
        }
      });
    }
  }
}

TEST_P(CountingTest, WorkspaceOfNormsAndSums) {
  constexpr std::int64_t kHidden = 24;
  for (const std::int64_t rows : {1, 40, 300}) {
    expect_as_counted([&](Operands& operand) {
      const Tensor x = operand({rows, kHidden});
      rmsnorm_backward(x, operand({kHidden}), operand.zeros({rows}), x, operand({rows, kHidden}),
                       operand.zeros({kHidden}));
    });
  }
  for (const std::int64_t count : {7, 200000}) {
    expect_as_counted([&](Operands& operand) { sum_of_squares(operand.zeros({count})); });
    expect_as_counted([&](Operands& operand) { sum(operand.zeros({count})); });
  }
}

// Of one row, of a few and of many; and of one column.
TEST_P(CountingTest, WorkspaceOfProducts) {
  for (const std::int64_t tokens : {1, 6, 100}) {
    for (const std::int64_t outputs : {1, 7, 64}) {
      constexpr std::int64_t kInputs = 10;
      const auto in_type = [&](const auto& work) {
        expect_as_counted([&](Operands& operand) {
          work(operand, operand({tokens, kInputs}), operand({outputs, kInputs}),
               operand({tokens, outputs}));
        });
      };
      in_type([](Operands&, const Tensor& x, const Tensor& weight, const Tensor& y) {
        linear_forward(x, weight, y);
      });
      in_type([](Operands&, const Tensor& x, const Tensor& weight, const Tensor& y) {
        linear_backward_input(y, weight, x);
      });
      in_type([](Operands& operand, const Tensor& x, const Tensor& weight, const Tensor& y) {
        linear_backward_weight(y, x, operand.zeros(weight.shape()));
      });
    }
  }
}

class CountedOps : public ::testing::Test {
 protected:
  // The count of the only op since this was last asked.
  OpCount only_count() {
    EXPECT_EQ(device_->op_counts().size(), 1u);
    const OpCount count = device_->op_counts().at(0);
    device_->clear_op_counts();
    return count;
  }
  double bytes() { return only_count().bytes; }

  std::unique_ptr<Device> device_ = Device::create_counting(Backend::cuda, 2);
  Operands operand_{*device_, DType::bf16};
};

TEST_F(CountedOps, AreOfTheirOperands) {
  const Tensor x = operand_({10, 6});
  const Tensor weight = operand_({4, 6});
  const Tensor y = operand_({10, 4});
  linear_forward(x, weight, y);
  linear_forward(x, weight, y);
  OpCount count = only_count();
  EXPECT_STREQ(count.op, "gemm_forward");
  EXPECT_EQ(count.shape, (std::array<std::int64_t, 3>{10, 4, 6}));
  EXPECT_EQ(count.calls, 2);
  EXPECT_EQ(count.flops, 2 * 2 * 10 * 4 * 6);
  EXPECT_EQ(count.bytes, 2 * 2 * (60 + 24 + 40));
  // Of columns of a wider tensor; what is added to is read and written.
  const Tensor gradient = operand_.zeros({3, 6});
  linear_backward_weight(Matrix(y).columns(1, 3), x, gradient);
  EXPECT_EQ(bytes(), 2 * 30 + 2 * 60 + 2 * 4 * 18);

  const Tensor bytes_of_120 = operand_({10, 6});
  add(x, bytes_of_120, x);
  EXPECT_EQ(bytes(), 3 * 120);
  fill(x, 0.0f);
  EXPECT_EQ(bytes(), 120);
  cast(operand_.zeros({10, 6}), x);
  EXPECT_EQ(bytes(), 3 * 120);
  rmsnorm_forward(x, operand_({6}), 1e-5f, bytes_of_120, {});
  EXPECT_EQ(bytes(), 2 * 120 + 12);
  swiglu_forward(x, operand_({10, 3}), {});
  EXPECT_EQ(bytes(), 120 + 60);
  embedding_forward(weight, operand_.zeros({10}, DType::i32), x);
  EXPECT_EQ(bytes(), 40 + 2 * 120);
  const Tensor moment = operand_({10, 6});
  AdamWHyperparameters hyperparameters{};
  hyperparameters.step = 1;
  adamw_step(hyperparameters, x, bytes_of_120, moment, moment);
  EXPECT_EQ(bytes(), 7 * 120);
}

// Two products of the half of all pairs forward, five backward.
TEST_F(CountedOps, OfAttentionAreOfTheCausalHalf) {
  const AttentionShape shape = {3, 5, 4, 2, 6};
  const Tensor qkv = operand_({15, 48});
  const Tensor out = operand_({15, 24});
  const Tensor log_sum_exp = operand_.zeros({60});
  double pairs = 0.0;
  for (int query = 0; query < 5; ++query) pairs += 3 * (query + 1);
  attention_forward(shape, qkv, {}, out, log_sum_exp);
  EXPECT_EQ(only_count().flops, 2 * 2 * pairs * 24);
  attention_backward(shape, qkv, {}, out, log_sum_exp, out, operand_({15, 48}));
  EXPECT_EQ(only_count().flops, 5 * 2 * pairs * 24);
}

TEST_F(CountedOps, GiveTheHostZeros) {
  const std::vector<float> ones(4, 1.0f);
  std::vector<float> read = ones;
  const Tensor tensor = operand_.zeros({4});
  copy_from_host(ones.data(), tensor);
  create_host_writer(*device_)->write(ones.data(), tensor);
  copy_to_host(tensor, read.data());
  EXPECT_EQ(read, std::vector<float>(4));
  read = ones;
  create_host_reader(*device_)->read(read.data(), tensor.raw(), 16);
  EXPECT_EQ(read, std::vector<float>(4));
  EXPECT_EQ(sum_of_squares(tensor), 0.0);
  EXPECT_EQ(count_nonfinite(tensor), 0);
}

// Nothing is done by mistake: neither by an op that does not count, nor by code of a CPU's.
TEST(CountingDevice, RefusesToWork) {
  for (const Backend backend : {Backend::cpu, Backend::cuda}) {
    const auto device = Device::create_counting(backend, 1);
    Operands operand(*device, DType::f32);
    EXPECT_THROW(transpose(operand({2, 3}), operand({3, 2})), std::logic_error);
    EXPECT_THROW(linear_forward(operand({2, 3}), operand({4, 2}), operand({2, 4})),
                 std::invalid_argument)
        << "operands are checked all the same";
    const Tensor tensor = operand({1 << 20});
    EXPECT_DEATH(std::memset(tensor.raw(), 0, 1), "");
    EXPECT_DEATH(static_cast<volatile float*>(tensor.f32() + (1 << 19))[0], "");
    EXPECT_THROW(device->allocate(DType::u8, {std::int64_t{1} << 56}, MemoryCategory::weights),
                 std::runtime_error);
  }
}

TEST(DeviceMemory, IsCountedByPurpose) {
  for (const bool counting : {false, true}) {
    const auto device = counting ? Device::create_counting(Backend::cpu, 1) : Device::create_cpu(1);
    const Buffer first = device->allocate(DType::f32, {16}, MemoryCategory::weights, "first");
    Buffer other = device->allocate(DType::f32, {48}, MemoryCategory::weights);
    Buffer second = device->allocate(DType::f32, {1}, MemoryCategory::weights, "first");
    const auto& parts = device->memory_parts();
    ASSERT_EQ(parts.size(), 2u);
    EXPECT_STREQ(parts[0].purpose, "first");
    EXPECT_STREQ(parts[1].purpose, "weights");
    EXPECT_EQ(parts[0].bytes, 128);
    EXPECT_EQ(parts[1].bytes, 192);
    other.release();
    EXPECT_EQ(parts[1].bytes, 0);
    other = std::move(second);
    EXPECT_EQ(parts[0].bytes, 128);
    EXPECT_EQ(device->memory().current(MemoryCategory::weights), 128);
  }
}

// Each phase with all that is in use meanwhile, also by who opened the frame around it.
TEST(DeviceMemory, WorkspaceIsCountedByPhase) {
  const auto device = Device::create_counting(Backend::cpu, 1);
  {
    Workspace::Frame unnamed(*device);
    unnamed.f32({16});
    {
      Workspace::Frame first(*device, "first");
      first.f32({32});
      Workspace::Frame inside(*device);
      inside.f32({16});
    }
    Workspace::Frame second(*device, "second");
    second.f32({16});
  }
  Workspace::Frame again(*device, "first");
  again.f32({16});
  const auto& phases = device->workspace().phases();
  ASSERT_EQ(phases.size(), 2u);
  EXPECT_STREQ(phases[0].name, "first");
  EXPECT_EQ(phases[0].bytes, 256);
  EXPECT_EQ(phases[1].bytes, 128);
  EXPECT_EQ(device->workspace().largest_used(), 256);
}

}  // namespace
}  // namespace chaski
