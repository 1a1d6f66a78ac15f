// Sums over many pixels that keep their digits, once per instruction set (target.h).
//
// What a batch norm owes to a gradient is a small difference of such sums, and torch's are in float64. A chain of a
// hundred additions in float32 would lose two digits that those keep.

// Terms are added to a run; every few terms the run is added to the total, along with what that addition rounds off.
struct LongSum {
  Vec run = {}, high = {}, low = {};
};

constexpr int kRunTerms = 8;

FASTNEST_INLINE void close_run(LongSum& sum) {
  const Vec high = sum.high + sum.run, part = high - sum.high;
  sum.low += (sum.high - (high - part)) + (sum.run - part);
  sum.high = high, sum.run = Vec{};
}

// After term `i`, counted from anywhere.
FASTNEST_INLINE void close_run(LongSum& sum, int64_t i) {
  if (i % kRunTerms == kRunTerms - 1) close_run(sum);
}

template <int kV>
FASTNEST_INLINE void close_runs(LongSum (&sums)[kV], int64_t i) {
  if (i % kRunTerms != kRunTerms - 1) return;
#pragma GCC unroll 4
  for (LongSum& sum : sums) close_run(sum);
}

FASTNEST_INLINE Vec total(LongSum sum) {
  close_run(sum);
  return select(sum.low == sum.low, sum.high + sum.low, sum.high);  // what is rounded off an infinity is no number
}
