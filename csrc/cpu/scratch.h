// Scratch memory of the kernels, from torch's allocator and kept for the next call: on a virtual machine touching a
// fresh megabyte costs as long as 30 million multiply-adds, and memory just used is still in cache.
#pragma once

#include <algorithm>
#include <mutex>
#include <vector>

#include "cpu/tensor.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fastnest {

class Scratch {
 public:
  explicit Scratch(int64_t floats) : buffer_(take(floats)) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    std::lock_guard lock(pool().mutex);
    auto& kept = pool().kept;
    if (buffer_.numel() <= kMostFloats && kept.size() < kMostKept) kept.push_back(std::move(buffer_));
  }
  static void release() {
    std::lock_guard lock(pool().mutex);
    pool().kept.clear();
  }
  float* data() { return buffer_.mutable_data_ptr<float>(); }

 private:
  static constexpr int64_t kMostFloats = 4 << 20;  // 16 MiB a buffer
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kMostKept = 0;  // nothing guards the end of what is asked for in a larger buffer
#else
  static constexpr size_t kMostKept = 4;
#endif

  struct Pool {
    std::mutex mutex;
    std::vector<Tensor> kept;
  };
  static Pool& pool() {
    static Pool* const shared = make_pool();  // never destroyed: threads may end after the library's statics
    return *shared;
  }

  // A process that is forked while another thread holds the lock would find it held for ever.
  static Pool* make_pool() {
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); }, [] { pool().mutex.unlock(); });
#endif
    return new Pool;
  }

  // The smallest kept buffer that is large enough, the most recently used among equals.
  static Tensor take(int64_t floats) {
    {
      std::lock_guard lock(pool().mutex);
      auto& kept = pool().kept;
      auto best = kept.end();
      for (auto it = kept.begin(); it != kept.end(); ++it)
        if (it->numel() >= floats && (best == kept.end() || it->numel() <= best->numel())) best = it;
      if (best != kept.end()) {
        Tensor found = std::move(*best);
        kept.erase(best);
        return found;
      }
      if (!kept.empty() && kept.size() == kMostKept) kept.erase(kept.begin());
    }
    return empty({floats}, ScalarType::Float);
  }

  Tensor buffer_;
};

}  // namespace fastnest
