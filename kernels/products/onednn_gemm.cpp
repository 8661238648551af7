#include "kernels/products/onednn_gemm.h"

#include <array>
#include <cstddef>
#include <dnnl.hpp>
#include <fmt/format.h>
#include <map>
#include <omp.h>
#include <stdexcept>
#include <string>

#include "kernels/device/device.h"

namespace chaski {
namespace {

// M, N, K, the strides of a, b and out, accumulate, threads.
using GemmKey = std::array<std::int64_t, 11>;

// Prompts and last windows of any length come by in a long-lived process: above this many shapes
// the cache starts again.
constexpr std::size_t kMaxCachedShapes = 512;

const dnnl::engine& cpu_engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

dnnl::memory::desc describe(std::int64_t rows, std::int64_t cols, const GemmOperand& operand) {
  return {{rows, cols},
          dnnl::memory::data_type::f32,
          dnnl::memory::dims{operand.row_stride, operand.col_stride}};
}

dnnl::matmul::primitive_desc make_descriptor(const dnnl::memory::desc& a,
                                             const dnnl::memory::desc& b,
                                             const dnnl::memory::desc& out, bool accumulate) {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (accumulate) {
    dnnl::post_ops operations;
    operations.append_sum(1.0f);
    attributes.set_post_ops(operations);
  }
#if DNNL_VERSION_MAJOR >= 3
  return {cpu_engine(), a, b, out, attributes};
#else
  return {dnnl::matmul::desc(a, b, out), attributes, cpu_engine()};
#endif
}

// A primitive with argument objects whose data pointers are set at each call.
class CachedGemm {
 public:
  CachedGemm(const dnnl::memory::desc& a, const dnnl::memory::desc& b,
             const dnnl::memory::desc& out, bool accumulate)
      : CachedGemm(a, b, out, make_descriptor(a, b, out, accumulate)) {}

  void run(Device& device, float* a, float* b, float* out) {
    Workspace::Frame frame(device);
    const Tensor scratch = frame.tensor(DType::u8, {scratch_bytes_});
    a_.set_data_handle(a);
    b_.set_data_handle(b);
    out_.set_data_handle(out);
    scratch_.set_data_handle(scratch.raw());
    // The C interface: the C++ one builds a hash map a call.
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, a_.get()},
                                         {DNNL_ARG_WEIGHTS, b_.get()},
                                         {DNNL_ARG_DST, out_.get()},
                                         {DNNL_ARG_SCRATCHPAD, scratch_.get()}};
    const dnnl_status_t status = dnnl_primitive_execute(
        primitive_.get(), stream_.get(), static_cast<int>(std::size(arguments)), arguments);
    if (status != dnnl_success)
      throw std::runtime_error(
          fmt::format("oneDNN's matmul failed with status {}", static_cast<int>(status)));
    stream_.wait();
  }

  std::int64_t scratch_bytes() const { return scratch_bytes_; }

 private:
  CachedGemm(const dnnl::memory::desc& a, const dnnl::memory::desc& b,
             const dnnl::memory::desc& out, const dnnl::matmul::primitive_desc& descriptor)
      : stream_(cpu_engine()),
        primitive_(descriptor),
        scratch_bytes_(static_cast<std::int64_t>(descriptor.scratchpad_desc().get_size())),
        a_(a, cpu_engine(), nullptr),
        b_(b, cpu_engine(), nullptr),
        out_(out, cpu_engine(), nullptr),
        scratch_(descriptor.scratchpad_desc(), cpu_engine(), nullptr) {}

  dnnl::stream stream_;
  dnnl::matmul primitive_;
  std::int64_t scratch_bytes_;
  dnnl::memory a_, b_, out_, scratch_;
};

// oneDNN asks OpenMP for the number of threads, both when it plans and when it runs.
class ScopedNumThreads {
 public:
  explicit ScopedNumThreads(int threads) : previous_(omp_get_max_threads()) {
    if (threads != previous_) omp_set_num_threads(threads);
  }
  ~ScopedNumThreads() {
    if (omp_get_max_threads() != previous_) omp_set_num_threads(previous_);
  }
  ScopedNumThreads(const ScopedNumThreads&) = delete;
  ScopedNumThreads& operator=(const ScopedNumThreads&) = delete;

 private:
  int previous_;
};

// The primitive for a product, made at its first call.
CachedGemm& cached_gemm(Device& device, std::int64_t m, std::int64_t n, std::int64_t k,
                        const GemmOperand& a, const GemmOperand& b, const GemmOperand& out,
                        bool accumulate) {
  // Per thread: the argument objects are changed by each call.
  thread_local std::map<GemmKey, CachedGemm> cache;
  const GemmKey key = {m,
                       n,
                       k,
                       a.row_stride,
                       a.col_stride,
                       b.row_stride,
                       b.col_stride,
                       out.row_stride,
                       out.col_stride,
                       static_cast<std::int64_t>(accumulate),
                       device.num_threads()};
  auto entry = cache.find(key);
  if (entry == cache.end()) {
    if (cache.size() >= kMaxCachedShapes) cache.clear();
    try {
      entry = cache
                  .try_emplace(key, describe(m, k, a), describe(k, n, b), describe(m, n, out),
                               accumulate)
                  .first;
    } catch (const dnnl::error& error) {
      throw std::runtime_error(fmt::format("oneDNN has no matmul for [{}, {}] x [{}, {}]: {}", m, k,
                                           k, n, error.what()));
    }
  }
  return entry->second;
}

// The backward passes' products, whose second operand has its rows one after the other. There
// oneDNN's own sgemm is the faster of its two ways: on a step's shapes of 9 M to 130 M parameters,
// 5 to 30 % in most, while matmul wins where the second operand is transposed (Zen 4, AVX-512, 2
// threads). A fixed choice, because another way of adding gives other bits.
bool suits_sgemm(std::int64_t n, const GemmOperand& b, const GemmOperand& out) {
  // A column (n = 1 or k = 1) can have both strides 1.
  return b.col_stride == 1 && b.row_stride >= n && out.col_stride == 1;
}

void run_sgemm(std::int64_t m, std::int64_t n, std::int64_t k, const GemmOperand& a,
               const GemmOperand& b, const GemmOperand& out, bool accumulate) {
  const bool transpose_a = a.col_stride != 1 || a.row_stride < k;
  const dnnl_status_t status =
      dnnl_sgemm(transpose_a ? 'T' : 'N', 'N', m, n, k, 1.0f, a.data,
                 transpose_a ? a.col_stride : a.row_stride, b.data, b.row_stride,
                 accumulate ? 1.0f : 0.0f, out.data, out.row_stride);
  if (status != dnnl_success)
    throw std::runtime_error(
        fmt::format("oneDNN's sgemm failed with status {}", static_cast<int>(status)));
}

}  // namespace

void onednn_gemm(Device& device, std::int64_t m, std::int64_t n, std::int64_t k,
                 const GemmOperand& a, const GemmOperand& b, const GemmOperand& out,
                 bool accumulate) {
  const ScopedNumThreads num_threads(device.num_threads());
  if (suits_sgemm(n, b, out)) return run_sgemm(m, n, k, a, b, out, accumulate);
  cached_gemm(device, m, n, k, a, b, out, accumulate).run(device, a.data, b.data, out.data);
}

std::int64_t onednn_gemm_workspace_bytes(Device& device, std::int64_t m, std::int64_t n,
                                         std::int64_t k, const GemmOperand& a, const GemmOperand& b,
                                         const GemmOperand& out, bool accumulate) {
  if (suits_sgemm(n, b, out)) return 0;
  const ScopedNumThreads num_threads(device.num_threads());
  return charged_bytes(cached_gemm(device, m, n, k, a, b, out, accumulate).scratch_bytes());
}

const char* onednn_name() {
  static const std::string name = [] {
    const dnnl_version_t* version = dnnl_version();
    return fmt::format("oneDNN {}.{}.{}", version->major, version->minor, version->patch);
  }();
  return name.c_str();
}

}  // namespace chaski
