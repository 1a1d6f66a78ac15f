// Gradients of parameters on tensors: sums over rows, packed in slices, and then in tensors of their own.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/gradients.h"
#include "cuda/launch.h"
#include "cuda/row_products.h"
#include "cuda/tensor.h"

namespace fastnest::cuda {

// Tensors like those of a list, each in as many parts, and where in packed sums the values of each part begin.
struct Gradients {
  List tensors;
  std::vector<Target> targets;
  int64_t total = 0;

  explicit Gradients(const List& like, int64_t parts = 1) {
    for (const Tensor& one : like) {
      tensors.push_back(torch::stable::empty_like(one));
      const int64_t size = one.numel() / parts, bytes = size * (one.scalar_type() == ScalarType::Float ? 4 : 2);
      for (int64_t i = 0; i < parts; ++i, total += size)
        targets.push_back({static_cast<char*>(tensors.back().mutable_data_ptr()) + i * bytes, total, size});
    }
  }
  // Where there are no rows to sum over.
  void zero() {
    for (Tensor& one : tensors) torch::stable::zero_(one);
  }
  // Writes them, given slices [count, ..., size] of the packed sums.
  void add(Element element, const float* slices, int count, int64_t size, void* stream) const {
    check_launch(add_slices_to(element, targets.data(), targets.size(), slices, count, size, stream));
  }
};

// The gradients of weights: sums over rows of dz [n, columns of all blocks] times f(scale b + shift).
template <class Product>
void write_products(Gradients& gradients, RowProducts all, const Tensor& like, size_t blocks, const Product& product,
                    void* stream) {
  all.splits = row_products_splits(all.element, all.n, gradients.total);
  all.total = gradients.total;
  Tensor slices = empty_like(like, {all.splits, all.total}, ScalarType::Float);
  all.slices = static_cast<float*>(slices.mutable_data_ptr());
  for (size_t i = 0; i < blocks; ++i) {
    all.product[all.count] = product(i);
    all.product[all.count++].out = gradients.targets[i].begin;
    if (all.count < kProductsInLaunch && i + 1 < blocks) continue;
    check_launch(row_products(all, stream));
    all.count = 0;
  }
  gradients.add(all.element, all.slices, all.splits, all.total, stream);
}

// The gradients of biases: sums of dz [n, columns] over rows. A target begins at the column of its sums.
inline void write_sums(std::initializer_list<const Gradients*> gradients, Element element, const Tensor& dz,
                       void* stream) {
  constexpr int64_t kRows = 64, kMost = 128;  // that a slice should have at least; slices
  if (std::all_of(gradients.begin(), gradients.end(), [](const Gradients* of) { return of->total == 0; })) return;
  const int64_t n = dz.size(0), columns = dz.size(1);
  const int count = static_cast<int>(std::min(divide_up(n, kRows), kMost));
  Tensor slices = empty_like(dz, {count, columns}, ScalarType::Float);
  auto* const data = static_cast<float*>(slices.mutable_data_ptr());
  check_launch(slice_rows(element, dz.const_data_ptr(), columns, n, data, count, columns, stream));
  for (const Gradients* of : gradients) of->add(element, data, count, columns, stream);
}

}  // namespace fastnest::cuda
