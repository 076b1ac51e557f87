// Rows in and rows out: the fused element-wise work around the convolutions.
//
//   load_row           view  ->  lines       v = dropout(relu(a x + b [+ a' x' + b']))
//   load_gradient_row  sum of contributions -> lines       d = p g [+ p' g'] [+ q y + r]
//   finish             lines -> stored tensor, with residual, bias, sums, or the masks of a view's gradient
//
// Each costs one pass over lines that are in cache already; nothing of it is ever stored but what `finish` writes.
// At 43 GB/s a separate pass over a 32-channel 32x32 fp32 tensor of 128 images (17 MB) would cost 0.8 ms to read and
// write, as much as the whole sparse convolution at 98 %.
#pragma once
#include "vector.hpp"

namespace regrow {
namespace REGROW_VARIANT {

// A thread's scratch memory, by use.
enum ScratchSlot { kInputRing, kGradientRing, kAccumulators, kSums, kRow, kPool, kTransposed, kInputRow };

// Where the lines of a row go: column x of channel c to base + c * channel_bytes + ((x + left) % phases) * phase_pitch
// + (x + left) / phases lines.
struct Lines {
    char* base;
    size_t channel_bytes;
    int phases, phase_pitch, left;
};

REGROW_INLINE uint32_t line_key(uint64_t seed, size_t line) {
    uint64_t z = (seed + line) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 32)) * 0xd6e8feb86659fd93ull;
    return uint32_t(z >> 32);
}

template <class T>
REGROW_INLINE typename T::V coefficient(const void* array, int c) {
    return T::broadcast(((const typename T::Scalar*)array)[c]);
}

// value of a view's argument (before ReLU and dropout) at one line
template <class T>
struct Argument {
    using V = typename T::V;
    V a, b, a2, b2;
    bool scaled, scaled2, two;
    REGROW_INLINE Argument make(const View& view, int c) {
        Argument g;
        g.scaled = view.first.scale, g.two = view.second.data, g.scaled2 = g.two && view.second.scale;
        g.a = g.b = g.a2 = g.b2 = V{};
        if (g.scaled)
            g.a = coefficient<T>(view.first.scale, c), g.b = coefficient<T>(view.first.shift, c);
        if (g.scaled2)
            g.a2 = coefficient<T>(view.second.scale, c), g.b2 = coefficient<T>(view.second.shift, c);
        return g;
    }
};

// One channel of a row. `mask` is null where all lanes hold images.
template <class T, bool Wide, bool Scaled, bool Second, bool Relu, bool Drop>
static void load_channel(const View& view, size_t at, int c, size_t line, const char* mask, char* d, const Lines& out) {
    using V = typename T::V;
    constexpr int P = T::parts, step = Wide ? T::ring_line : kLine;
    const Argument<T> g = Argument<T>::make(view, c);
    const V keep_scale = Drop ? T::broadcast(typename T::Scalar(view.keep_scale)) : V{};
    const char *s = view.first.data + at, *s2 = Second ? view.second.data + at : nullptr;
    const int width = view.shape.width;
    for (int phase = 0; phase < out.phases; phase++) {
        int x = (phase - out.left % out.phases + out.phases) % out.phases;
        char* to = d + (size_t(phase) * out.phase_pitch + (x + out.left) / out.phases) * step;
        for (; x < width; x += out.phases, to += step) {
            V v[P], w[P], m[P];
            T::load(s + size_t(x) * kLine, v);
            if (mask)
                T::load(mask + size_t(x) * kLine, m);
            if constexpr (Scaled)
                for (int i = 0; i < P; i++)
                    v[i] = g.a * v[i] + (mask ? g.b * m[i] : g.b);
            if constexpr (Second) {
                T::load(s2 + size_t(x) * kLine, w);
                if (g.scaled2)
                    for (int i = 0; i < P; i++)
                        w[i] = g.a2 * w[i] + (mask ? g.b2 * m[i] : g.b2);
                for (int i = 0; i < P; i++)
                    v[i] += w[i];
            }
            if constexpr (Relu)
                for (int i = 0; i < P; i++)
                    v[i] = T::rectify(v[i]);
            if constexpr (Drop) {
                const uint32_t key = line_key(view.seed, line + x);
                for (int i = 0; i < P; i++)
                    v[i] = T::where(T::kept(key, i, view.keep), v[i]) * keep_scale;
            }
            Wide ? T::store_ring(to, v) : T::store(to, v);
        }
    }
}

// Channels `first` up to `last` of a row, or all; `out` is where the first goes.
template <class T, bool Wide = false>
static void load_row(const View& view, int tile, int y, const Lines& out, int first, int last) {
    const Shape& shape = view.shape;
    const size_t line = (size_t(tile) * shape.height + y) * shape.channels * size_t(shape.width);
    if (!Wide && view.plain() && out.phases == 1) {
        for (int c = first; c < last; c++)
            memcpy(out.base + (c - first) * out.channel_bytes + size_t(out.left) * kLine,
                   view.first.data + (line + size_t(c) * shape.width) * kLine, size_t(shape.width) * kLine);
        return;
    }
    using Load = void (*)(const View&, size_t, int, size_t, const char*, char*, const Lines&);
    static constexpr Load table[16] = {
        load_channel<T, Wide, 0, 0, 0, 0>, load_channel<T, Wide, 1, 0, 0, 0>, load_channel<T, Wide, 0, 1, 0, 0>,
        load_channel<T, Wide, 1, 1, 0, 0>, load_channel<T, Wide, 0, 0, 1, 0>, load_channel<T, Wide, 1, 0, 1, 0>,
        load_channel<T, Wide, 0, 1, 1, 0>, load_channel<T, Wide, 1, 1, 1, 0>, load_channel<T, Wide, 0, 0, 0, 1>,
        load_channel<T, Wide, 1, 0, 0, 1>, load_channel<T, Wide, 0, 1, 0, 1>, load_channel<T, Wide, 1, 1, 0, 1>,
        load_channel<T, Wide, 0, 0, 1, 1>, load_channel<T, Wide, 1, 0, 1, 1>, load_channel<T, Wide, 0, 1, 1, 1>,
        load_channel<T, Wide, 1, 1, 1, 1>};
    const Load load =
        table[(view.first.scale ? 1 : 0) + (view.second.data ? 2 : 0) + (view.relu ? 4 : 0) + (view.keep ? 8 : 0)];
    const char* mask = tile == shape.tiles - 1 ? shape.mask : nullptr;
    for (int c = first; c < last; c++) {
        const size_t at = line + size_t(c) * shape.width;
        load(view, at * kLine, c, at, mask, out.base + (c - first) * out.channel_bytes, out);
    }
}
template <class T, bool Wide = false>
static void load_row(const View& view, int tile, int y, const Lines& out) {
    load_row<T, Wide>(view, tile, y, out, 0, view.shape.channels);
}

template <class T, bool Wide, bool Normed, bool Second>
static void load_gradient_channel(const GradientView& g, size_t at, int c, const char* mask, char* to, double* bias) {
    using V = typename T::V;
    constexpr int P = T::parts;
    const V one = T::broadcast(1), p = g.factor[0] ? coefficient<T>(g.factor[0], c) : one;
    const V p2 = Second && g.factor[1] ? coefficient<T>(g.factor[1], c) : one;
    const V q = Normed ? coefficient<T>(g.q, c) : V{}, r = Normed ? coefficient<T>(g.r, c) : V{};
    V total = V{};
    for (int x = 0; x < g.shape.width; x++) {
        const size_t i0 = at + size_t(x) * kLine;
        V v[P], w[P], m[P];
        T::load(g.source[0] + i0, v);
        for (int i = 0; i < P; i++)
            v[i] *= p;
        if constexpr (Normed) {
            T::load(g.value + i0, w);
            if (mask)
                T::load(mask + size_t(x) * kLine, m);
            for (int i = 0; i < P; i++)
                v[i] += q * w[i] + (mask ? r * m[i] : r);
        }
        if constexpr (Second) {
            T::load(g.source[1] + i0, w);
            for (int i = 0; i < P; i++)
                v[i] += p2 * w[i];
        }
        if (bias)
            for (int i = 0; i < P; i++)
                total += v[i];
        Wide ? T::store_ring(to + size_t(x) * T::ring_line, v) : T::store(to + size_t(x) * kLine, v);
        if (g.store)
            g.stream ? T::store_stream(g.store + i0, v) : T::store(g.store + i0, v);
    }
    if (bias)
        bias[c] += T::sum(total);
}

// Channels `first` up to `last`, or all; `to` + c * channel_bytes: the first line of channel `first` + c
template <class T, bool Wide = false>
static void load_gradient_row(const GradientView& g, int tile, int y, char* to, size_t channel_bytes, double* bias,
                              int first, int last) {
    const Shape& shape = g.shape;
    const char* mask = tile == shape.tiles - 1 ? shape.mask : nullptr;
    using Load = void (*)(const GradientView&, size_t, int, const char*, char*, double*);
    static constexpr Load table[4] = {load_gradient_channel<T, Wide, 0, 0>, load_gradient_channel<T, Wide, 1, 0>,
                                      load_gradient_channel<T, Wide, 0, 1>, load_gradient_channel<T, Wide, 1, 1>};
    const Load load = table[(g.value ? 1 : 0) + (g.source[1] ? 2 : 0)];
    const size_t row = tile * shape.tile_bytes() + y * shape.row_bytes();
    for (int c = first; c < last; c++)
        load(g, row + size_t(c) * shape.width * kLine, c, mask, to + (c - first) * channel_bytes, bias);
}
template <class T, bool Wide = false>
static void load_gradient_row(const GradientView& g, int tile, int y, char* to, size_t channel_bytes, double* bias) {
    load_gradient_row<T, Wide>(g, tile, y, to, channel_bytes, bias, 0, g.shape.channels);
}

// Put C neighbouring lines v of channel c at columns x, x + step, ... of a target's row, with all that is fused there.
// `sums`: kStatistics vectors of partial sums for the channel.
template <class T, int C>
REGROW_INLINE void finish(const Target& t, int tile, int y, int c, int x, int step, typename T::V* v,
                          typename T::V* sums) {
    using V = typename T::V;
    constexpr int P = T::parts;
    const Shape& shape = t.shape;
    const size_t line = ((size_t(tile) * shape.height + y) * shape.channels + c) * shape.width + x;
    const size_t at = line * kLine, next = size_t(step) * kLine;
    if (t.bias) {
        const V b = coefficient<T>(t.bias, c);
        const char* mask = tile == shape.tiles - 1 ? shape.mask : nullptr;
        for (int j = 0; j < C; j++) {
            V m[P];
            if (mask)
                T::load(mask + (size_t(x) + size_t(j) * step) * kLine, m);
            for (int i = 0; i < P; i++)
                v[j * P + i] += mask ? b * m[i] : b;
        }
    }
    if (t.add)
#pragma GCC unroll 8
        for (int j = 0; j < C; j++) {
            V w[P];
            T::load(t.add + at + j * next, w);
            for (int i = 0; i < P; i++)
                v[j * P + i] += w[i];
        }
    if (t.gate) {
        const View& view = *t.gate;
        const Argument<T> g = Argument<T>::make(view, c);
        const V keep_scale = T::broadcast(typename T::Scalar(view.keep_scale));
        V s = sums[0], s1 = sums[1], s2 = sums[2];
#pragma GCC unroll 8
        for (int j = 0; j < C; j++) {
            V y0[P], y1[P] = {};
            T::load(view.first.data + at + j * next, y0);
            if (g.two)
                T::load(view.second.data + at + j * next, y1);
            const uint32_t key = view.keep ? line_key(view.seed, line + size_t(j) * step) : 0;
            for (int i = 0; i < P; i++) {
                V& d = v[j * P + i];
                if (view.keep)
                    d = T::where(T::kept(key, i, view.keep), d) * keep_scale;
                if (view.relu) {
                    V u = g.scaled ? g.a * y0[i] + g.b : y0[i];
                    if (g.two)
                        u += g.scaled2 ? g.a2 * y1[i] + g.b2 : y1[i];
                    d = T::where(T::positive(u), d);
                }
                s += d, s1 += d * y0[i];
                if (g.two)
                    s2 += d * y1[i];
            }
        }
        sums[0] = s, sums[1] = s1, sums[2] = s2;
    }
    if (t.statistics) {
        V s = sums[0], s1 = sums[1];
        for (int i = 0; i < C * P; i++)
            s += v[i], s1 += v[i] * v[i];
        sums[0] = s, sums[1] = s1;
    }
    char* to = t.data + at;
    if (t.stream)
#pragma GCC unroll 8
        for (int j = 0; j < C; j++)
            T::store_stream(to + j * next, v + j * P);
    else
#pragma GCC unroll 8
        for (int j = 0; j < C; j++)
            T::store(to + j * next, v + j * P);
}

// The same out of line, one line at a time: for widths of tiles that are rare.
template <class T>
static __attribute__((noinline)) void finish_line(const Target& t, int tile, int y, int c, int x,
                                                  const typename T::V* v, typename T::V* sums) {
    typename T::V copy[T::parts];
    for (int i = 0; i < T::parts; i++)
        copy[i] = v[i];
    finish<T, 1>(t, tile, y, c, x, 1, copy, sums);
}
template <class T, int C>
REGROW_INLINE void finish_tile(const Target& t, int tile, int y, int c, int x, int step, typename T::V* v,
                               typename T::V* sums) {
    if constexpr (C == 8 || C == 7 || C == 4 || C == 2)
        finish<T, C>(t, tile, y, c, x, step, v, sums);
    else
        for (int j = 0; j < C; j++)
            finish_line<T>(t, tile, y, c, x + j * step, v + j * T::parts, sums);
}

// One channel of a row of lines, as element-wise steps end.
template <class T>
static void finish_channel(const Target& t, int tile, int y, int c, const char* lines, typename T::V* sums) {
    constexpr int kAtATime = 4;
    typename T::V v[kAtATime * T::parts];
    const int width = t.shape.width;
    int x = 0;
    for (; x + kAtATime <= width; x += kAtATime, lines += kAtATime * kLine) {
        for (int j = 0; j < kAtATime; j++)
            T::load(lines + j * kLine, v + j * T::parts);
        finish<T, kAtATime>(t, tile, y, c, x, 1, v, sums + c * kStatistics);
    }
    for (; x < width; x++, lines += kLine) {
        T::load(lines, v);
        finish<T, 1>(t, tile, y, c, x, 1, v, sums + c * kStatistics);
    }
}
// a whole row, [channel][width]
template <class T>
static void finish_row(const Target& t, int tile, int y, const char* lines, typename T::V* sums) {
    for (int c = 0; c < t.shape.channels; c++)
        finish_channel<T>(t, tile, y, c, lines + size_t(c) * t.shape.width * kLine, sums);
}

// Partial sums in the arithmetic's own precision grow over a few rows and are then added to doubles: the double flush
// lowers the gradient error of an fp32 WRN-22-2 from 2.3e-3 to 4.5e-4 at no cost.
constexpr int kFlushRows = 4;

template <class T>
struct Sums {
    typename T::V* partial;
    double* total;
    int channels, rows;
    void start(Worker& worker, int slot, int channel_count) {
        channels = worker.statistics ? channel_count : 0, rows = 0, total = worker.statistics;
        const size_t bytes = size_t(channel_count) * kStatistics * sizeof(typename T::V);
        partial = (typename T::V*)worker.scratch(worker.owner, slot, bytes);
        memset((void*)partial, 0, bytes);
    }
    void flush() {
        for (int i = 0; i < channels * kStatistics; i++)
            total[i] += T::sum(partial[i]), partial[i] = typename T::V{};
        rows = 0;
    }
    void row_done() {
        if (++rows >= kFlushRows)
            flush();
    }
};

}  // namespace REGROW_VARIANT
}  // namespace regrow
