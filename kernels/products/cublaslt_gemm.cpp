#include <algorithm>
#include <array>
#include <bit>
#include <cublasLt.h>
#include <fmt/format.h>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>

#include "kernels/device/cuda_context.h"
#include "kernels/device/shared_library.h"
#include "kernels/products/matmul_cuda.h"

namespace chaski::cuda {
namespace {

// The library's own assumption for pointers, and so the largest alignment that makes a difference.
constexpr std::uint32_t kFullAlignment = 256;

// The library's functions, loaded when a GPU multiplies for the first time: linked with, its half
// gigabyte would cost every run on a CPU 150 MiB of memory.
class Functions {
 public:
  Functions() {
    const SharedLibrary library("cuBLASLt", fmt::format("libcublasLt.so.{}", CUBLAS_VER_MAJOR),
                                CHASKI_CUBLASLT_PATH,
                                "LD_LIBRARY_PATH must lead to the CUDA toolkit's libraries");
#define CHASKI_LOAD(name) library.find("cublasLt" #name, name)
    CHASKI_LOAD(Create);
    CHASKI_LOAD(Destroy);
    CHASKI_LOAD(GetStatusString);
    CHASKI_LOAD(Matmul);
    CHASKI_LOAD(MatmulAlgoGetHeuristic);
    CHASKI_LOAD(MatmulDescCreate);
    CHASKI_LOAD(MatmulDescDestroy);
    CHASKI_LOAD(MatmulDescSetAttribute);
    CHASKI_LOAD(MatmulPreferenceCreate);
    CHASKI_LOAD(MatmulPreferenceDestroy);
    CHASKI_LOAD(MatmulPreferenceSetAttribute);
    CHASKI_LOAD(MatrixLayoutCreate);
    CHASKI_LOAD(MatrixLayoutDestroy);
#undef CHASKI_LOAD
  }

  decltype(&cublasLtCreate) Create;
  decltype(&cublasLtDestroy) Destroy;
  decltype(&cublasLtGetStatusString) GetStatusString;
  decltype(&cublasLtMatmul) Matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) MatmulAlgoGetHeuristic;
  decltype(&cublasLtMatmulDescCreate) MatmulDescCreate;
  decltype(&cublasLtMatmulDescDestroy) MatmulDescDestroy;
  decltype(&cublasLtMatmulDescSetAttribute) MatmulDescSetAttribute;
  decltype(&cublasLtMatmulPreferenceCreate) MatmulPreferenceCreate;
  decltype(&cublasLtMatmulPreferenceDestroy) MatmulPreferenceDestroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) MatmulPreferenceSetAttribute;
  decltype(&cublasLtMatrixLayoutCreate) MatrixLayoutCreate;
  decltype(&cublasLtMatrixLayoutDestroy) MatrixLayoutDestroy;
};

const Functions& cublas() {
  static const Functions functions;
  return functions;
}

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw std::runtime_error(
      fmt::format("cuBLASLt: {} failed: {}", what, cublas().GetStatusString(status)));
}

template <typename Handle, auto Destroy>
struct Destroyer {
  using pointer = Handle;
  void operator()(Handle handle) const { (cublas().*Destroy)(handle); }
};
template <typename Handle, auto Destroy>
using Owned = std::unique_ptr<Handle, Destroyer<Handle, Destroy>>;
using Library = Owned<cublasLtHandle_t, &Functions::Destroy>;
using Operation = Owned<cublasLtMatmulDesc_t, &Functions::MatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, &Functions::MatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, &Functions::MatmulPreferenceDestroy>;

cudaDataType type_of(const Matrix& matrix) {
  return matrix.tensor.dtype() == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

std::uint32_t alignment_of(const Matrix& matrix) {
  const auto address = reinterpret_cast<std::uintptr_t>(matrix.raw());
  const auto stride = static_cast<std::uintptr_t>(matrix.stride * size_of(matrix.tensor.dtype()));
  const int zeros = std::countr_zero(address | stride | kFullAlignment);
  return std::uint32_t{1} << zeros;
}

Layout layout_of(const Matrix& matrix) {
  cublasLtMatrixLayout_t layout = nullptr;
  // The library counts columns first: a row-major matrix is its transpose.
  check(
      cublas().MatrixLayoutCreate(&layout, type_of(matrix), static_cast<std::uint64_t>(matrix.cols),
                                  static_cast<std::uint64_t>(matrix.rows), matrix.stride),
      "describing a matrix");
  return Layout(layout);
}

// One product: outᵀ = op(b)ᵀ · op(a)ᵀ in the library's order of columns first.
struct Product {
  const Matrix& a;
  Transpose transpose_a;
  const Matrix& b;
  Transpose transpose_b;
  const Matrix& out;
  Accumulate accumulate;
  bool tf32;
};

// Everything that the choice of an algorithm depends on.
using Key = std::array<std::int64_t, 17>;

Key key_of(const Product& p) {
  const auto code = [](auto value) { return static_cast<std::int64_t>(value); };
  return {p.a.rows,
          p.a.cols,
          p.a.stride,
          code(p.transpose_a),
          p.b.rows,
          p.b.cols,
          p.b.stride,
          code(p.transpose_b),
          p.out.stride,
          code(p.accumulate),
          code(type_of(p.a)),
          code(type_of(p.b)),
          code(type_of(p.out)),
          code(alignment_of(p.a)),
          code(alignment_of(p.b)),
          code(alignment_of(p.out)),
          code(p.tf32)};
}

std::string describe(const Product& p) {
  return fmt::format("[{}, {}]{} x [{}, {}]{} of {}", p.a.rows, p.a.cols,
                     p.transpose_a == Transpose::yes ? " transposed" : "", p.b.rows, p.b.cols,
                     p.transpose_b == Transpose::yes ? " transposed" : "",
                     name_of(p.a.tensor.dtype()));
}

// The library's description of a product and the algorithm that it chose.
class Plan {
 public:
  Plan(cublasLtHandle_t library, const Product& product)
      : operation_(create_operation(product)),
        a_(layout_of(product.a)),
        b_(layout_of(product.b)),
        out_(layout_of(product.out)) {
    choose(library, product);
  }

  void run(cublasLtHandle_t library, const Product& product, void* workspace,
           cudaStream_t stream) const {
    const float alpha = 1.0f;
    const float beta = product.accumulate == Accumulate::yes ? 1.0f : 0.0f;
    check(cublas().Matmul(library, operation_.get(), &alpha, product.b.raw(), b_.get(),
                          product.a.raw(), a_.get(), &beta, product.out.raw(), out_.get(),
                          product.out.raw(), out_.get(), &algorithm_, workspace,
                          static_cast<std::size_t>(kGemmWorkspaceBytes), stream),
          "a product");
  }

 private:
  static Operation create_operation(const Product& product) {
    cublasLtMatmulDesc_t raw = nullptr;
    const cublasComputeType_t compute =
        product.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    check(cublas().MatmulDescCreate(&raw, compute, CUDA_R_32F), "describing a product");
    Operation operation(raw);
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, Transpose transpose) {
      const cublasOperation_t value = transpose == Transpose::yes ? CUBLAS_OP_T : CUBLAS_OP_N;
      check(cublas().MatmulDescSetAttribute(operation.get(), attribute, &value, sizeof(value)),
            "describing a product");
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, product.transpose_b);
    set(CUBLASLT_MATMUL_DESC_TRANSB, product.transpose_a);
    return operation;
  }

  static Preference create_preference(const Product& product) {
    cublasLtMatmulPreference_t raw = nullptr;
    check(cublas().MatmulPreferenceCreate(&raw), "stating a preference");
    Preference preference(raw);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      check(
          cublas().MatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)),
          "stating a preference");
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::size_t>(kGemmWorkspaceBytes));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(product.b));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(product.a));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(product.out));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(product.out));
    return preference;
  }

  void choose(cublasLtHandle_t library, const Product& product) {
    const Preference preference = create_preference(product);
    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    check(cublas().MatmulAlgoGetHeuristic(library, operation_.get(), b_.get(), a_.get(), out_.get(),
                                          out_.get(), preference.get(), 1, &result, &found),
          describe(product).c_str());
    if (found == 0 || result.state != CUBLAS_STATUS_SUCCESS)
      throw std::runtime_error(fmt::format("cuBLASLt has no algorithm for {}", describe(product)));
    algorithm_ = result.algo;
  }

  Operation operation_;
  Layout a_, b_, out_;
  cublasLtMatmulAlgo_t algorithm_ = {};
};

// Of one device.
class Plans {
 public:
  Plans() {
    cublasLtHandle_t library = nullptr;
    check(cublas().Create(&library), "starting");
    library_.reset(library);
  }

  cublasLtHandle_t library() const { return library_.get(); }
  const Plan& plan(const Product& product) {
    const Key key = key_of(product);
    auto entry = plans_.find(key);
    if (entry == plans_.end()) entry = plans_.try_emplace(key, library_.get(), product).first;
    return entry->second;
  }

 private:
  Library library_;
  std::map<Key, Plan> plans_;
};

}  // namespace

void gemm(Device& device, const Matrix& a, Transpose transpose_a, const Matrix& b,
          Transpose transpose_b, const Matrix& out, Accumulate accumulate) {
  const bool tf32 = device.allows_tf32() && a.tensor.dtype() == DType::f32;
  const Product product{a, transpose_a, b, transpose_b, out, accumulate, tf32};
  Context& context = context_of(device);
  Plans& plans = context.state<Plans>();
  const Plan& plan = plans.plan(product);
  Workspace::Frame frame(device);
  const Tensor workspace = frame.tensor(DType::u8, {kGemmWorkspaceBytes});
  plan.run(plans.library(), product, workspace.raw(), context.stream());
}

const char* gemm_library_name() {
  static const std::string name =
      fmt::format("cuBLASLt {}.{}.{}", CUBLAS_VER_MAJOR, CUBLAS_VER_MINOR, CUBLAS_VER_PATCH);
  return name.c_str();
}

}  // namespace chaski::cuda
