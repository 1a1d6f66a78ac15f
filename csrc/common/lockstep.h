// Threads that walk through numbered phases together, each phase cut in parts.
//
// A part of a phase is claimed by whoever comes first: its own thread as a rule, another one if that thread has not
// started. So it ends even when the parts are run one after the other by one thread (nested parallel regions).
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace fastnest {

class Lockstep {
 public:
  explicit Lockstep(int parts) : next_(parts) {}

  // Runs work(phase, part) for every phase in order and every part of it; all parts of a phase end before the next.
  template <class Work>
  void work(int home, int64_t phases, const Work& work) {
    const int parts = static_cast<int>(next_.size());
    for (int64_t phase = 0; phase < phases; ++phase) {
      for (int i = 0; i < parts; ++i) {
        const int part = (home + i) % parts;
        int64_t expected = phase;
        if (!next_[part].phase.compare_exchange_strong(expected, phase + 1, std::memory_order_acq_rel)) continue;
        work(phase, part);
        finished_.fetch_add(1, std::memory_order_release);
      }
      for (int spins = 0; finished_.load(std::memory_order_acquire) < (phase + 1) * parts; ++spins)
        if (spins > kSpins) std::this_thread::yield();
    }
  }

 private:
  static constexpr int kSpins = 4096;
  struct alignas(64) Part {
    std::atomic<int64_t> phase{0};
  };
  std::vector<Part> next_;
  std::atomic<int64_t> finished_{0};
};

}  // namespace fastnest
