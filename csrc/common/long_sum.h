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
FASTNEST_INLINE void close_run(LongSum& sum, int64_t i) {
  if (i % kRunTerms != kRunTerms - 1) return;
  const Vec high = sum.high + sum.run, part = high - sum.high;
  sum.low += (sum.high - (high - part)) + (sum.run - part);
  sum.high = high, sum.run = Vec{};
}

FASTNEST_INLINE Vec total(LongSum sum) {
  close_run(sum, kRunTerms - 1);
  return select(sum.low == sum.low, sum.high + sum.low, sum.high);  // what is rounded off an infinity is no number
}

// Mean and squared deviations of values seen a second time, about nearly their mean: what is left of the sum tells the
// mean to more digits than one float holds.
struct Deviations {
  Vec near;
  LongSum rest = {}, squares = {};
};

FASTNEST_INLINE Deviations deviations_about(const LongSum& values, Vec share) { return {total(values) * share}; }

FASTNEST_INLINE void add_value(Deviations& sums, Vec value, int64_t i) {
  const Vec d = value - sums.near;
  sums.rest.run += d;
  sums.squares.run = fma(d, d, sums.squares.run);
  close_run(sums.rest, i), close_run(sums.squares, i);
}

// [3][c]: the mean in two parts, and the sum of squared deviations from it.
FASTNEST_INLINE void store_moments(const Deviations& sums, Vec share, float* moments, int64_t c, int count) {
  const Vec rest = total(sums.rest), left = rest * share;
  store_first(moments, sums.near, count);
  store_first(moments + c, select(left == left, left, Vec{}), count);  // no number where the mean is infinite
  store_first(moments + 2 * c, total(sums.squares) - left * rest, count);
}
