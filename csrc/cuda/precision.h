// Whether torch's own float32 products on GPUs are of TF32, asked of torch at run time (as in stream.h: no header of
// the stable ABI says it).
#pragma once

#include <dlfcn.h>

namespace fastnest::cuda {

// torch.backends.cuda.matmul.fp32_precision == "tf32". False where torch does not say.
inline bool tf32_is_asked_for() {
  // at::Context::float32Precision(Float32Backend::CUDA, Float32Op::MATMUL), and the context that it is a member of.
  using Context = void* (*)();
  using Precision = int (*)(const void*, int, int);
  constexpr int kCuda = 1, kMatmul = 3, kTf32 = 2;
  static void* const torch = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD);
  if (torch == nullptr) return false;
  static const auto context = reinterpret_cast<Context>(dlsym(torch, "_ZN2at13globalContextEv"));
  static const auto precision =
      reinterpret_cast<Precision>(dlsym(torch, "_ZNK2at7Context16float32PrecisionENS_14Float32BackendENS_9Float32OpE"));
  return context && precision && precision(context(), kCuda, kMatmul) == kTf32;
}

}  // namespace fastnest::cuda
