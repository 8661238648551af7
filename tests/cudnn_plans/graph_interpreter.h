#pragma once

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/attention/graph.h"

namespace chaski::test {

// Computes a graph's operations one by one in double, with every tensor in memory. It takes no
// shapes, strides or order of operations on trust: std::logic_error where they do not fit.
class GraphInterpreter {
 public:
  explicit GraphInterpreter(const cuda::Graph& graph)
      : graph_(graph), values_(graph.tensors.size()) {
    for (std::size_t i = 0; i < graph.tensors.size(); ++i) {
      if (graph.tensors[i].place == cuda::GraphPlace::constant)
        values_[i] = {static_cast<double>(graph.tensors[i].constant)};
    }
  }

  // An operand that begins at an element of memory.
  void read(int number, const std::vector<double>& memory, std::int64_t first) {
    expect_operand(number);
    values_[at(number)] = gather(tensor(number), memory, first);
  }
  void write(int number, std::vector<double>& memory, std::int64_t first) const {
    expect_operand(number);
    scatter(tensor(number), values_[at(number)], memory, first);
  }

  void run() {
    for (const cuda::GraphOperation& operation : graph_.operations) {
      for (const int input : operation.inputs)
        expect(!values_[at(input)].empty(), "an operation reads what nothing has written");
      expect(values_[at(operation.output)].empty(), "an operation writes what is there already");
      values_[at(operation.output)] = compute(operation);
    }
  }

 private:
  using Dims = cuda::GraphDims;
  using Kind = cuda::GraphOperator;
  using Values = std::vector<double>;

  static std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }
  static void expect(bool condition, const char* what) {
    if (!condition) throw std::logic_error(std::string("graph: ") + what);
  }
  void expect_operand(int number) const {
    expect(tensor(number).place == cuda::GraphPlace::operand, "not an operand");
  }
  const cuda::GraphTensor& tensor(int number) const { return graph_.tensors.at(at(number)); }

  static std::int64_t count(const Dims& dims) { return dims[0] * dims[1] * dims[2] * dims[3]; }
  // The place of an element in rows after rows; dimensions of 1 stand for all.
  static std::size_t place(const Dims& dims, const Dims& element) {
    std::int64_t result = 0;
    for (std::size_t d = 0; d < dims.size(); ++d)
      result = result * dims[d] + (dims[d] == 1 ? 0 : element[d]);
    return at(result);
  }
  template <typename F>
  static void for_each(const Dims& dims, F f) {
    for (std::int64_t b = 0; b < dims[0]; ++b) {
      for (std::int64_t h = 0; h < dims[1]; ++h) {
        for (std::int64_t i = 0; i < dims[2]; ++i) {
          for (std::int64_t j = 0; j < dims[3]; ++j) f(Dims{b, h, i, j});
        }
      }
    }
  }
  static std::int64_t address(const Dims& strides, const Dims& element) {
    return element[0] * strides[0] + element[1] * strides[1] + element[2] * strides[2] +
           element[3] * strides[3];
  }
  static Values gather(const cuda::GraphTensor& tensor, const Values& memory, std::int64_t first) {
    Values values(at(count(tensor.dims)));
    for_each(tensor.dims, [&](const Dims& element) {
      values[place(tensor.dims, element)] = memory.at(at(first + address(tensor.strides, element)));
    });
    return values;
  }
  static void scatter(const cuda::GraphTensor& tensor, const Values& values, Values& memory,
                      std::int64_t first) {
    for_each(tensor.dims, [&](const Dims& element) {
      memory.at(at(first + address(tensor.strides, element))) = values[place(tensor.dims, element)];
    });
  }

  Values compute(const cuda::GraphOperation& operation) const {
    switch (operation.kind) {
      case Kind::matmul:
        return product(operation);
      case Kind::sum:
      case Kind::largest:
        return reduction(operation);
      case Kind::transpose:
        return view(operation);
      default:
        return by_elements(operation);
    }
  }

  Values product(const cuda::GraphOperation& operation) const {
    const Dims &a = tensor(operation.inputs[0]).dims, &b = tensor(operation.inputs[1]).dims;
    const Dims& c = tensor(operation.output).dims;
    expect(a[0] == b[0] && a[1] % b[1] == 0 && a[3] == b[2], "factors do not fit");
    expect(c == (Dims{a[0], a[1], a[2], b[3]}), "a product has another shape");
    const Values &left = values_[at(operation.inputs[0])],
                 &right = values_[at(operation.inputs[1])];
    const std::int64_t group = a[1] / b[1];
    Values result(at(count(c)));
    for_each(c, [&](const Dims& e) {
      double sum = 0.0;
      for (std::int64_t k = 0; k < a[3]; ++k)
        sum +=
            left[place(a, {e[0], e[1], e[2], k})] * right[place(b, {e[0], e[1] / group, k, e[3]})];
      result[place(c, e)] = sum;
    });
    return result;
  }

  Values reduction(const cuda::GraphOperation& operation) const {
    const Dims &from = tensor(operation.inputs[0]).dims, &to = tensor(operation.output).dims;
    for (std::size_t d = 0; d < from.size(); ++d)
      expect(from[d] == to[d] || to[d] == 1 || (d == 1 && from[d] % to[d] == 0),
             "a reduction has another shape");
    const bool largest = operation.kind == Kind::largest;
    Values result(at(count(to)), largest ? -INFINITY : 0.0);
    const std::int64_t group = from[1] / to[1];
    const Values& values = values_[at(operation.inputs[0])];
    for_each(from, [&](const Dims& e) {
      const double value = values[place(from, e)];
      double& total = result[place(to, {e[0], e[1] / group, e[2], e[3]})];
      total = largest ? std::max(total, value) : total + value;
    });
    return result;
  }

  // The same memory with other shape and strides.
  Values view(const cuda::GraphOperation& operation) const {
    const cuda::GraphTensor &from = tensor(operation.inputs[0]), &to = tensor(operation.output);
    expect(to.dims == (Dims{from.dims[0], from.dims[1], from.dims[3], from.dims[2]}),
           "a transposition has another shape");
    Dims last = from.dims;
    for (std::int64_t& index : last) --index;
    Values memory(at(address(from.strides, last) + 1), NAN);
    scatter(from, values_[at(operation.inputs[0])], memory, 0);
    return gather(to, memory, 0);
  }

  Values by_elements(const cuda::GraphOperation& operation) const {
    const cuda::GraphTensor& output = tensor(operation.output);
    for (const int input : operation.inputs) {
      for (std::size_t d = 0; d < output.dims.size(); ++d)
        expect(tensor(input).dims[d] == output.dims[d] || tensor(input).dims[d] == 1,
               "operands of different shapes");
    }
    expect((output.type == cuda::GraphType::i32) == (operation.kind == Kind::index) &&
               (output.type == cuda::GraphType::boolean) == (operation.kind == Kind::at_least),
           "a result of another type");
    Values result(at(count(output.dims)));
    for_each(output.dims, [&](const Dims& e) {
      const auto input = [&](std::size_t i) {
        const int number = operation.inputs.at(i);
        return values_[at(number)][place(tensor(number).dims, e)];
      };
      result[place(output.dims, e)] = element(operation, e, input);
    });
    return result;
  }

  template <typename Input>
  static double element(const cuda::GraphOperation& operation, const Dims& place, Input input) {
    switch (operation.kind) {
      case Kind::multiply:
        return input(0) * input(1);
      case Kind::divide:
        return input(0) / input(1);
      case Kind::add:
        return input(0) + input(1);
      case Kind::subtract:
        return input(0) - input(1);
      case Kind::exponential:
        return std::exp(input(0));
      case Kind::logarithm:
        return std::log(input(0));
      case Kind::index:
        return static_cast<double>(place.at(at(operation.axis)));
      case Kind::at_least:
        return input(0) >= input(1) ? 1.0 : 0.0;
      case Kind::select:
        return input(2) != 0.0 ? input(0) : input(1);
      default:
        throw std::logic_error("graph: not an operation by elements");
    }
  }

  const cuda::Graph& graph_;
  std::vector<Values> values_;
};

}  // namespace chaski::test
