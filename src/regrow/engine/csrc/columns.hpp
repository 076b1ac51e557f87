// One tile of columns of one row, through all blocks and all output channels of a pattern.
//
//   for each block of input channels           partial sums of a block wait in a scratch of one tile per output
//     for each output row of the pattern       channel; loading and storing them costs 25 cycles (fp32) to 54 (bf16)
//       multiply (tile.hpp)                    where a weight costs 5, so blocks are made of at least 8 weights a row
//     the last block: finish (rows.hpp)
#pragma once
#include "rows.hpp"
#include "tile.hpp"

namespace regrow {
namespace REGROW_VARIANT {

// Walks the next row's streams, some lines at every segment of the pattern.
class Prefetcher {
  public:
    void add(const char* p, size_t bytes) {
        if (!p || !bytes)
            return;
        stream_[count_++] = {p, p + bytes};
        chunks_ += bytes / kChunk;
    }
    void start(long steps) {
        per_step_ = chunks_ && steps > 0 ? int((chunks_ + steps - 1) / steps) : 0;
        if (count_)
            at_ = stream_[0].begin, end_ = stream_[0].end;
    }
    __attribute__((always_inline)) void step() {
        for (int i = 0; i < per_step_; i++) {
            if (__builtin_expect(at_ >= end_, 0)) {
                if (current_ + 1 >= count_) {
                    per_step_ = 0;
                    return;
                }
                current_++, at_ = stream_[current_].begin, end_ = stream_[current_].end;
            }
            for (int j = 0; j < kChunk; j += kLine)
                prefetch(at_ + j);
            at_ += kChunk;
        }
    }

  private:
    static constexpr int kChunk = 256;
    struct Stream {
        const char *begin, *end;
    } stream_[8];
    int count_ = 0, current_ = 0, per_step_ = 0;
    long chunks_ = 0;
    const char *at_ = nullptr, *end_ = nullptr;
};

REGROW_INLINE void prefetch_view(Prefetcher& p, const View& view, int tile, int row, int rows, int last_tile) {
    const Shape& s = view.shape;
    if (row >= s.height)
        row = 0, tile++;
    if (row < 0)
        row = 0;
    if (tile >= last_tile)
        return;
    const size_t at = tile * s.tile_bytes() + row * s.row_bytes(),
                 bytes = smaller(rows, s.height - row) * s.row_bytes();
    p.add(view.first.data + at, bytes);
    if (view.second.data)
        p.add(view.second.data + at, bytes);
}

REGROW_INLINE void prefetch_gradient(Prefetcher& p, const GradientView& g, int tile, int row) {
    const size_t bytes = g.shape.row_bytes(), at = tile * g.shape.tile_bytes() + row * bytes;
    for (const char* source : g.source)
        if (source)
            p.add(source + at, bytes);
    if (g.value)
        p.add(g.value + at, bytes);
    if (g.store && !g.stream)
        p.add(g.store + at, bytes);
}
// Rows that will be written, unless they go past the caches.
REGROW_INLINE void prefetch_target(Prefetcher& p, const Target& t, int tile, int row, int rows) {
    if (!t.stream && row < t.shape.height)
        p.add(t.data + tile * t.shape.tile_bytes() + row * t.shape.row_bytes(),
              smaller(rows, t.shape.height - row) * t.shape.row_bytes());
}

template <class T>
struct Column {  // one tile of columns of one row, all output channels
    const Segments& segments;
    const uint16_t* offsets;
    const char* x;  // the tile's first line of channel 0 in the ring
    const Target& target;
    int tile, y, column, step;
    typename T::V *accumulators, *sums;
    Prefetcher& prefetcher;
};

// U lines of four rows with equal positions, beginning `u` lines into the tile
template <class T, int C, int U>
REGROW_INLINE void shared_part(const Column<T>& a, int q, int j, int u, uint32_t k, uint32_t end) {
    using V = typename T::V;
    constexpr int P = T::parts;
    const bool first = q == 0, last = q == a.segments.blocks - 1;
    V v[4 * U * P];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        const V* kept = a.accumulators + (size_t(4 * j + r) * C + u) * P;
#pragma GCC unroll 16
        for (int i = 0; i < U * P; i++)
            v[r * U * P + i] = first ? V{} : kept[i];
    }
    multiply_shared<T, U>(v, a.x + q * a.segments.block_bytes + u * T::ring_line, a.segments.scale, a.offsets,
                          (const typename T::Weight*)a.segments.weights, k, end);
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        const int c = 4 * j + r;
        if (last) {
            finish_tile<T, U>(a.target, a.tile, a.y, c, a.column + u * a.step, a.step, v + r * U * P,
                              a.sums + c * kStatistics);
        } else {
            V* kept = a.accumulators + (size_t(c) * C + u) * P;
#pragma GCC unroll 16
            for (int i = 0; i < U * P; i++)
                kept[i] = v[r * U * P + i];
        }
    }
}

template <class T, int C>
static void column(const Column<T>& a) {
    using V = typename T::V;
    constexpr int P = T::parts, N = C * P, S = smaller(shared_lines<T>(), C);
    const Segments& s = a.segments;
    for (int q = 0; q < s.blocks; q++) {
        const bool first = q == 0, last = q == s.blocks - 1;
        const char* x = a.x + q * s.block_bytes;
        const uint32_t* begin = s.begin + size_t(q) * s.block_stride;
        for (int j = 0; j < s.rows; j++, begin += s.row_stride) {
            const uint32_t k = begin[0], end = begin[1];
            a.prefetcher.step();
            if (s.shared == 4) {
                int u = 0;
                for (; u + S <= C; u += S)
                    shared_part<T, C, S>(a, q, j, u, k, end);
                if constexpr (C % S != 0)
                    shared_part<T, C, C % S>(a, q, j, u, k, end);
                continue;
            }
            if (k == end && !first && !last)
                continue;
            V v[N], *kept = a.accumulators + size_t(j) * N;
            if (first) {
#pragma GCC unroll 16
                for (int i = 0; i < N; i++)
                    v[i] = V{};
            } else {
#pragma GCC unroll 16
                for (int i = 0; i < N; i++)
                    v[i] = kept[i];
            }
            multiply<T, C>(v, x, s.scale, a.offsets, (const typename T::Weight*)s.weights, k, end);
            if (last) {
                finish_tile<T, C>(a.target, a.tile, a.y, j, a.column, a.step, v, a.sums + j * kStatistics);
            } else {
#pragma GCC unroll 16
                for (int i = 0; i < N; i++)
                    kept[i] = v[i];
            }
        }
    }
}

template <class T>
struct WeightColumn {
    const Segments& segments;
    const uint16_t* offsets;
    const char *x, *d;  // the tile's first line of channel 0 in either ring
    size_t d_channel;
    typename T::Scalar* sums;
    Prefetcher& prefetcher;
};

template <class T, int C>
static void weight_column(const WeightColumn<T>& a) {
    constexpr int S = smaller(shared_weight_lines<T>(), C);
    const Segments& s = a.segments;
    for (int q = 0; q < s.blocks; q++) {
        const char* x = a.x + q * s.block_bytes;
        const uint32_t* begin = s.begin + size_t(q) * s.block_stride;
        for (int j = 0; j < s.rows; j++, begin += s.row_stride) {
            const uint32_t k = begin[0], end = begin[1];
            a.prefetcher.step();
            if (s.shared == 4) {
                const char* d = a.d + 4 * j * a.d_channel;
                int u = 0;
                for (; u + S <= C; u += S)
                    weight_gradient_shared<T, S>(x + u * T::ring_line, s.scale, a.offsets, d + u * T::ring_line,
                                                 a.d_channel, a.sums, k, end);
                if constexpr (C % S != 0)
                    weight_gradient_shared<T, C % S>(x + u * T::ring_line, s.scale, a.offsets, d + u * T::ring_line,
                                                     a.d_channel, a.sums, k, end);
            } else if (k < end) {
                weight_gradient<T, C>(x, s.scale, a.offsets, a.d + j * a.d_channel, a.sums, k, end);
            }
        }
    }
}

// Calls the instance for C columns, 1 <= C <= 8.
template <class T, template <class, int> class Call, int most = tile_lines<T>(), class Argument>
REGROW_INLINE void by_width(int width, const Argument& a) {
    using F = void (*)(const Argument&);
    static constexpr F table[8] = {Call<T, smaller(1, most)>::run, Call<T, smaller(2, most)>::run,
                                   Call<T, smaller(3, most)>::run, Call<T, smaller(4, most)>::run,
                                   Call<T, smaller(5, most)>::run, Call<T, smaller(6, most)>::run,
                                   Call<T, smaller(7, most)>::run, Call<T, smaller(8, most)>::run};
    table[width - 1](a);
}
template <class T, int C>
struct CallColumn {
    static void run(const Column<T>& a) { column<T, C>(a); }
};
template <class T, int C>
struct CallWeightColumn {
    static void run(const WeightColumn<T>& a) { weight_column<T, C>(a); }
};

// Columns are cut into tiles of equal width as far as possible: 10 = 5 + 5, 28 = 7 + 7 + 7 + 7.
struct Tiles {
    int width, count;
    static Tiles of(int width, int most) { return {width, (width + most - 1) / most}; }
    int begin(int i) const { return int(long(width) * i / count); }
};

}  // namespace REGROW_VARIANT
}  // namespace regrow
