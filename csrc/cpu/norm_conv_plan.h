// How a link's work is cut: panels of the channels written, bands of the pixels walked through, and who has which.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/norm_conv.h"

namespace fastnest {

// Vectors of channels that are written together.
struct Panel {
  int64_t vector;
  int vectors;
};

// Pixels [begin, end) of all images in a row: of the target in a forward, of the source in a backward.
struct Band {
  int64_t begin, end;
  int64_t pixels() const { return end - begin; }
};

// What an instruction set makes of a link: floats of a vector, vectors of a panel, channels of a 32-bit lane.
struct Lanes {
  int vector, panel, channels;
};

// Positions of an image in a tile: a column of zeros before every line, which is also the one behind the line above,
// and a line of zeros between images, so that every tap of every pixel lies at the same distance from it.
struct Padded {
  int64_t height, width, first;  // of the image; the tile's first line
  static int64_t line(int64_t height, int64_t image, int64_t y) { return image * (height + 1) + 1 + y; }
  int64_t at(int64_t image, int64_t y, int64_t x) const {
    return (line(height, image, y) - first) * (width + 1) + 1 + x;
  }
};

// A 1x1 convolution reads its pixels one behind the other; else the lines [first, last] are padded.
struct TileLines {
  int64_t first, last;
  int64_t positions(int64_t width) const { return (last - first + 1) * (width + 1) + 1; }
};

// Of the source, where a band of the target reads it.
inline TileLines source_lines(const NormConv& conv, const Band& band) {
  const int64_t w = conv.out_width(), each = conv.out_height() * w, last = band.end - 1;
  return {Padded::line(conv.height, band.begin / each, band.begin % each / w * conv.stride) - 1,
          Padded::line(conv.height, last / each, last % each / w * conv.stride) + 1};
}

// Of the target, where a band of the source has a part in it: pixel y meets lines (y + padding) / stride - m, m >= 0.
inline TileLines target_lines(const NormConv& conv, const Band& band) {
  const int64_t each = conv.height * conv.width, last = band.end - 1, pad = conv.kernel / 2, s = conv.stride;
  return {Padded::line(conv.out_height(), band.begin / each, (band.begin % each / conv.width + pad) / s) -
              (conv.kernel - 1) / s,
          Padded::line(conv.out_height(), last / each, (last % each / conv.width + pad) / s)};
}

// Threads in `groups` that write different channels, times `shares` that walk through different pixels.
struct Plan {
  std::vector<Panel> panels;
  std::vector<int64_t> group_begin, share_begin;  // first panel of a group, first band of a share; and the ends
  std::vector<Band> bands;
  int64_t groups() const { return static_cast<int64_t>(group_begin.size()) - 1; }
  int64_t shares() const { return static_cast<int64_t>(share_begin.size()) - 1; }
  int64_t most_pixels() const {
    int64_t most = 0;
    for (const Band& band : bands) most = std::max(most, band.pixels());
    return most;
  }
};

struct Work {
  int64_t written, read, taps, pixels;  // channels, channels, taps, pixels walked through
  double products;                      // how often every weight meets every pixel
  double shared;                        // cycles per vector of weights for each share beyond the first
};

// Where a panel's weights are packed, in vectors of channels. A thread that has its panels to itself and all pixels in
// one band packs each when it comes to it, in the place of the one before: that place stays in cache.
inline int64_t place_of(const Panel& panel, const Panel& begin, bool alone) {
  return alone ? begin.vector : panel.vector;
}

constexpr double kBarrierCycles = 8000;  // another region of threads
constexpr double kTileCycles = 4;        // to make a vector of the tile

inline Plan plan_of(const Work& work, int64_t band_pixels, int64_t threads, const Lanes& lanes) {
  const auto up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t vectors = up(work.written, lanes.vector);
  int64_t groups = 1;
  double least = 0;
  for (int64_t g = 1; g <= threads; ++g) {
    if (threads % g != 0) continue;
    const int64_t shares = threads / g;
    const double weights = static_cast<double>(vectors) * work.read * work.taps;
    const double pixels = static_cast<double>(up(work.pixels, shares));
    const double cycles =
        pixels * work.read *
            (work.products * work.taps * up(vectors, g) / lanes.channels + kTileCycles / lanes.vector) +
        (shares > 1 ? kBarrierCycles + work.shared * weights * (shares - 1) / threads : 0);
    if (g == 1 || cycles < least) groups = g, least = cycles;
  }
  Plan plan;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = vectors * g / groups, own = vectors * (g + 1) / groups - begin, pieces = up(own, lanes.panel);
    plan.group_begin.push_back(plan.panels.size());
    for (int64_t i = 0; i < pieces; ++i)
      plan.panels.push_back({begin + own * i / pieces, static_cast<int>(own * (i + 1) / pieces - own * i / pieces)});
  }
  plan.group_begin.push_back(plan.panels.size());
  const int64_t shares = std::clamp<int64_t>(work.pixels, 1, threads / groups);  // each has a band, if there is any
  for (int64_t s = 0; s < shares; ++s) {
    const int64_t begin = work.pixels * s / shares, own = work.pixels * (s + 1) / shares - begin;
    const int64_t pieces = up(own, band_pixels);
    plan.share_begin.push_back(plan.bands.size());
    for (int64_t i = 0; i < pieces; ++i)
      plan.bands.push_back({begin + own * i / pieces, begin + own * (i + 1) / pieces});
  }
  plan.share_begin.push_back(plan.bands.size());
  return plan;
}

constexpr int64_t kTileFloats = 96 * 1024;  // of an operand tile: a fifth of a large second-level cache
constexpr int64_t kBandPixels = 192;

// Pixels of a band: its tile, `read` lanes a pixel, stays in cache with the lines that 3x3 needs around it.
inline int64_t band_pixels(int64_t read, int64_t kernel, int64_t width) {
  const int64_t fit = kTileFloats / std::max<int64_t>(read, 1) - (kernel > 1 ? 3 * (width + 1) : 0);
  return std::clamp<int64_t>(fit, 24, kernel > 1 ? 2 * kBandPixels : kBandPixels);
}

}  // namespace fastnest
