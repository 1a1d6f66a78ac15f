// How a host function's work is shared among torch's threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "common/lockstep.h"
#include "common/share.h"
#include "cpu/scratch.h"
#include "cpu/tensor.h"

namespace fastnest {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// work(begin, end) over pieces of [0, count) that are worth a thread each.
template <class Work>
void in_ranges(int64_t count, const Work& work) {
  if (count > 0) torch::stable::parallel_for(0, count, 1 << 15, work);
}

constexpr int64_t kTileRows = 48;
constexpr int64_t kVectorRows = 16;
constexpr int64_t kStreamFloats =
    400'000;  // of a group of tiles: it stays in second-level cache, weights pass once a group
constexpr int64_t kMostTiles = 4;
constexpr int64_t kSlice = 128;
constexpr int64_t kCachedFloats = 600'000;
constexpr double kAloneFlops = 1.5e6;

// n rows of `width` features to the threads where each gets `enough` of them; else they share every row's width.
// Less than kAloneFlops in all is done before a second thread has woken.
inline std::vector<Share> shares_of(int64_t n, int64_t width, int64_t enough, double flops) {
  if (n == 0) return {};
  const int64_t threads = flops < kAloneFlops ? 1 : torch::stable::get_num_threads(), groups = ceil_div(n, kVectorRows);
  const int64_t most = std::clamp<int64_t>(kStreamFloats / (width * kTileRows), 1, kMostTiles);
  const int64_t slice = std::min(kSlice, ceil_div(width, 16) * 16);
  const auto share = [](int64_t begin, int64_t end, int64_t tiles, int64_t parts, int64_t part_slice) {
    return Share{begin, end, static_cast<int>(tiles), static_cast<int>(parts), static_cast<int>(part_slice)};
  };
  if (n < enough * threads || threads == 1) {
    const int64_t parts = std::clamp<int64_t>(width / 64, 1, threads);
    return {share(0, n, std::min(most * parts, ceil_div(n, kTileRows)), parts,
                  std::min(slice, ceil_div(ceil_div(width, parts), 16) * 16))};
  }
  const int64_t rounds = ceil_div(groups * kVectorRows, threads * most * kTileRows);
  const int64_t rows = ceil_div(groups, threads * rounds) * kVectorRows;
  std::vector<Share> shares;
  for (int64_t begin = 0; begin < n; begin += rows)
    shares.push_back(share(begin, std::min(n, begin + rows), ceil_div(rows, kTileRows), 1, slice));
  return shares;
}

// The same for a backward, where a thread keeps its sums over all of its rows: at most one share a thread, and rows
// enough for what sums of its own cost, where these do not stay in cache.
inline std::vector<Share> one_share_a_thread(int64_t n, int64_t width, int64_t sums_floats, double flops) {
  std::vector<Share> shares = shares_of(n, width, sums_floats <= kCachedFloats ? 2 * kVectorRows : 512, flops);
  const int64_t threads = torch::stable::get_num_threads();
  if (static_cast<int64_t>(shares.size()) <= threads) return shares;
  const Share first = shares[0];
  const int64_t rows = ceil_div(static_cast<int64_t>(shares.size()), threads) * (first.end - first.begin);
  shares.clear();
  for (int64_t begin = 0; begin < n; begin += rows)
    shares.push_back({begin, std::min(n, begin + rows), first.tiles, 1, first.slice});
  return shares;
}

// Runs every share: one share by all the threads in lockstep, many shares each by whichever thread is free.
// scratch_floats(share) sizes a share's scratch memory; run(share, scratch, team, member) does the work.
template <class Size, class Run>
void run_shares(const std::vector<Share>& shares, const Size& scratch_floats, const Run& run) {
  if (shares.empty()) return;
  const int64_t workers =
      shares.size() == 1 ? shares[0].parts : std::min<int64_t>(shares.size(), torch::stable::get_num_threads());
  const int64_t each = ceil_div(scratch_floats(shares[0]), 16) * 16;  // the first share is the largest
  Scratch scratch(each * (shares.size() == 1 ? 1 : workers));
  float* const memory = scratch.data();
  Lockstep team(shares[0].parts);
  std::atomic<size_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      if (shares.size() == 1) {
        run(shares[0], memory, team, static_cast<int>(worker));
        continue;
      }
      for (size_t i = next++; i < shares.size(); i = next++) {
        Lockstep alone(1);
        run(shares[i], memory + worker * each, alone, 0);
      }
    }
  });
}

// Sums over rows: `floats` in all, the first of them at home in a gradient's own memory where `home` is not null.
struct SumsLayout {
  int64_t floats;
  float* home[2] = {nullptr, nullptr};
  int64_t home_floats[2] = {0, 0};
};

// Runs every share with sums of its own, adds these up in the order of the shares, and has finish(sums, i) read the
// total for every i < blocks.
template <class Size, class Run, class Finish>
void run_with_sums(const std::vector<Share>& shares, const SumsLayout& sums, const Size& scratch_floats, const Run& run,
                   int64_t blocks, const Finish& finish) {
  const int64_t at_home = sums.home_floats[0] + sums.home_floats[1], rest = sums.floats - at_home;
  const int64_t others = std::max<int64_t>(shares.size(), 1) - 1;
  Scratch scratch(rest + others * sums.floats);
  float* const memory = scratch.data();
  const SumsPlace first{{sums.home[0], sums.home[1]}, memory};
  const auto place = [&](int64_t share) {
    return share == 0 ? first : SumsPlace{{nullptr, nullptr}, memory + rest + (share - 1) * sums.floats};
  };
  const auto zero = [](float* data, int64_t count) {
    in_ranges(count, [&](int64_t begin, int64_t end) { std::fill(data + begin, data + end, 0.0f); });
  };
  zero(sums.home[0], sums.home_floats[0]);
  zero(sums.home[1], sums.home_floats[1]);
  zero(memory, rest + others * sums.floats);
  run_shares(shares, scratch_floats, [&](const Share& share, float* work, Lockstep& team, int member) {
    run(share, work, place(&share - shares.data()), team, member);
  });
  const auto add = [&](float* to, int64_t offset, int64_t count) {
    in_ranges(count, [&](int64_t begin, int64_t end) {
      for (int64_t share = 1; share <= others; ++share) {
        const float* from = place(share).rest + offset;
        for (int64_t i = begin; i < end; ++i) to[i] += from[i];
      }
    });
  };
  if (others > 0) {
    add(sums.home[0], 0, sums.home_floats[0]);
    add(sums.home[1], sums.home_floats[0], sums.home_floats[1]);
    add(memory, at_home, rest);
  }
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) finish(first, i);
  });
}

}  // namespace fastnest
