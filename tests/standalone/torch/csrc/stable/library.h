// As much of torch's stable ABI as csrc/cpu uses, without torch: the kernels with their hosts then compile into a plain
// executable (main.cpp), which every sanitizer and every emulator runs. Tensors are buffers of their own, exactly as
// long as their strides reach.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "wire.h"

namespace torch::headeronly {
enum class ScalarType : int32_t { Float, BFloat16, Half };
}

namespace torch::stable {

using headeronly::ScalarType;

class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(Tensor* made) : Tensor(std::move(*made)) { delete made; }
  Tensor(std::vector<int64_t> sizes, std::vector<int64_t> strides, ScalarType type)
      : sizes_(std::move(sizes)), strides_(std::move(strides)), type_(type) {
    data_.reset(std::malloc(static_cast<size_t>(bytes())), std::free);
  }
  int64_t dim() const { return static_cast<int64_t>(sizes_.size()); }
  int64_t size(int64_t i) const { return sizes_.at(static_cast<size_t>(i)); }
  int64_t stride(int64_t i) const { return strides_.at(static_cast<size_t>(i)); }
  const std::vector<int64_t>& sizes() const { return sizes_; }
  const std::vector<int64_t>& strides() const { return strides_; }
  ScalarType scalar_type() const { return type_; }
  int64_t numel() const {
    int64_t count = 1;
    for (const int64_t size : sizes_) count *= size;
    return count;
  }
  // Of the elements from the first to the last one.
  int64_t bytes() const {
    if (numel() == 0) return 0;
    int64_t last = 0;
    for (size_t i = 0; i < sizes_.size(); ++i) last += (sizes_[i] - 1) * strides_[i];
    return (last + 1) * (type_ == ScalarType::Float ? 4 : 2);
  }
  const void* const_data_ptr() const { return data_.get(); }
  void* mutable_data_ptr() { return data_.get(); }
  template <class T>
  const T* const_data_ptr() const {
    return static_cast<const T*>(data_.get());
  }
  template <class T>
  T* mutable_data_ptr() {
    return static_cast<T*>(data_.get());
  }

 private:
  std::vector<int64_t> sizes_, strides_;
  ScalarType type_ = ScalarType::Float;
  std::shared_ptr<void> data_;
};

inline uint32_t& threads() {
  static uint32_t number = 1;
  return number;
}
inline uint32_t get_num_threads() { return threads(); }

// As at::parallel_for cuts a range: equal parts, at least `grain` each, one a thread.
template <class Work>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Work& work) {
  if (begin >= end) return;
  const int64_t count = end - begin, most = grain > 0 ? (count + grain - 1) / grain : count;
  const int64_t parts = std::min<int64_t>(threads(), most), each = (count + parts - 1) / parts;
  std::vector<std::thread> others;
  for (int64_t first = begin + each; first < end; first += each)
    others.emplace_back([&work, first, last = std::min(end, first + each)] { work(first, last); });
  work(begin, std::min(end, begin + each));
  for (std::thread& other : others) other.join();
}

using Registered = std::map<std::string, std::function<void(wire::Reader&, wire::Writer&)>>;

class Library {
 public:
  static Registered& operators() {
    static Registered all;
    return all;
  }
  void impl(const std::string& name, Registered::mapped_type function) { operators()[name] = std::move(function); }
};

struct Registration {
  explicit Registration(void (*registers)(Library&)) {
    Library library;
    registers(library);
  }
};

inline void read(wire::Reader& from, Tensor& to) {
  const auto type = static_cast<ScalarType>(from.number<int64_t>());
  std::vector<int64_t> sizes(static_cast<size_t>(from.number<int64_t>())), strides(sizes.size());
  for (int64_t& size : sizes) size = from.number<int64_t>();
  for (int64_t& stride : strides) stride = from.number<int64_t>();
  to = Tensor(std::move(sizes), std::move(strides), type);
  from.bytes(to.mutable_data_ptr(), to.bytes());
}

inline void write(wire::Writer& to, const Tensor& from) {
  to.number<int64_t>(static_cast<int64_t>(from.scalar_type()));
  to.number<int64_t>(from.dim());
  for (const int64_t size : from.sizes()) to.number(size);
  for (const int64_t stride : from.strides()) to.number(stride);
  to.bytes(from.const_data_ptr(), from.bytes());
}

// A function of tensors, numbers and lists of them as one that reads its arguments and writes what it returns.
template <class... Results, class... Arguments>
Registered::mapped_type boxed(std::tuple<Results...> (*function)(Arguments...)) {
  return [function](wire::Reader& from, wire::Writer& to) {
    std::tuple<std::decay_t<Arguments>...> arguments;
    std::apply([&](auto&... argument) { (wire::read_any(from, argument), ...); }, arguments);
    std::apply([&](const auto&... result) { (wire::write_any(to, result), ...); }, std::apply(function, arguments));
  };
}

}  // namespace torch::stable

#define FASTNEST_JOIN(a, b) a##b
#define FASTNEST_NAME(line) FASTNEST_JOIN(registers_at_, line)
#define STABLE_TORCH_LIBRARY_IMPL(space, key, m)                                                          \
  static void FASTNEST_NAME(__LINE__)(::torch::stable::Library&);                                         \
  static const ::torch::stable::Registration FASTNEST_JOIN(registration_, key)(&FASTNEST_NAME(__LINE__)); \
  static void FASTNEST_NAME(__LINE__)(::torch::stable::Library & m)
#define TORCH_BOX(function) ::torch::stable::boxed(function)

template <class... Words>
[[noreturn]] void fail(const Words&... words) {
  std::ostringstream text;
  (text << ... << words);
  throw std::runtime_error(text.str());
}
#define STD_TORCH_CHECK(condition, ...) \
  if (!(condition)) fail(__VA_ARGS__)
#define TORCH_ERROR_CODE_CHECK(call) \
  if ((call) != 0) fail(#call)

using AtenTensorHandle = torch::stable::Tensor*;
inline int32_t aoti_torch_dtype_float32() { return 0; }
inline int32_t aoti_torch_dtype_bfloat16() { return 1; }
inline int32_t aoti_torch_dtype_float16() { return 2; }
inline int32_t aoti_torch_device_type_cpu() { return 0; }
inline int32_t aoti_torch_empty_strided(int64_t dimensions, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                        int32_t, int32_t, AtenTensorHandle* made) {
  *made = new torch::stable::Tensor({sizes, sizes + dimensions}, {strides, strides + dimensions},
                                    static_cast<torch::headeronly::ScalarType>(dtype));
  return 0;
}
