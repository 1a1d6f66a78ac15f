// Sums over many pixels that keep their digits, once per instruction set (target.h).
//
// What a batch norm owes to a gradient is a small difference of such sums, and torch's are in float64. A chain of a
// hundred additions in float32 would lose two digits that those keep.

// Terms are added to a run; every few terms the run is added to the total, along with what that addition rounds off.
struct LongSum {
  Vec run = {}, high = {}, low = {};
};

constexpr int kRunTerms = 8;

// After term `i`, counted from anywhere.
template <int kV>
FASTNEST_INLINE void close_runs(LongSum (&sums)[kV], int64_t i) {
  if (i % kRunTerms != kRunTerms - 1) return;
#pragma GCC unroll 4
  for (int v = 0; v < kV; ++v) {
    LongSum& sum = sums[v];
    const Vec high = sum.high + sum.run, part = high - sum.high;
    sum.low += (sum.high - (high - part)) + (sum.run - part);
    sum.high = high, sum.run = Vec{};
  }
}

FASTNEST_INLINE Vec total(const LongSum& sum) {
  LongSum closed[1] = {sum};
  close_runs(closed, kRunTerms - 1);
  const Vec high = closed[0].high, low = closed[0].low;
  return select(low == low, high + low, high);  // what is rounded off an infinity is no number
}
