// Steps without weights: what no convolution could take along. Each reads rows through a view (or a sum of gradient
// contributions), works on lines, and ends in `finish`, so that any of them may carry residuals, masks and sums.
// They stream: the time is bytes / bandwidth.
#pragma once
#include "rows.hpp"

namespace regrow {
namespace REGROW_VARIANT {

// Where pixel (0, 0) of image tile n lies in a flat tensor, whose columns are image tiles.
struct Pixel {
    int tile, column;
};
REGROW_INLINE Pixel pixel(const Shape& flat, int n) { return {n / flat.width, n % flat.width}; }

REGROW_INLINE char* row_memory(Worker& worker, const Shape& s, int slot = kRow) {
    return worker.scratch(worker.owner, slot, s.row_bytes());
}
template <class T>
static void load_plain_row(const View& view, int tile, int y, char* lines) {
    load_row<T>(view, tile, y, {lines, size_t(view.shape.width) * kLine, 1, view.shape.width, 0});
}

// Channel by channel, so that a row of a wide tensor (512 KB at 256 x 32) does not go through L2.
template <class T>
static void materialise(const View& view, const Target& target, Worker& worker) {
    const int width = view.shape.width;
    char* lines = worker.scratch(worker.owner, kRow, size_t(width) * kLine);
    Sums<T> sums;
    sums.start(worker, kSums, view.shape.channels);
    for (int tile = worker.first; tile < worker.last; tile++)
        for (int y = 0; y < view.shape.height; y++) {
            for (int c = 0; c < view.shape.channels; c++) {
                load_row<T>(view, tile, y, {lines, 0, 1, width, 0}, c, c + 1);
                finish_channel<T>(target, tile, y, c, lines, sums.partial);
            }
            sums.row_done();
        }
    sums.flush();
}

template <class T>
static void gradient(const GradientView& g, const Target& target, Worker& worker) {
    char* lines = worker.scratch(worker.owner, kRow, size_t(g.shape.width) * kLine);
    Sums<T> sums;
    sums.start(worker, kSums, g.shape.channels);
    for (int tile = worker.first; tile < worker.last; tile++)
        for (int y = 0; y < g.shape.height; y++) {
            for (int c = 0; c < g.shape.channels; c++) {
                load_gradient_row<T>(g, tile, y, lines, 0, nullptr, c, c + 1);
                finish_channel<T>(target, tile, y, c, lines, sums.partial);
            }
            sums.row_done();
        }
    sums.flush();
}

template <class T>
REGROW_INLINE void put(const Target& t, bool flat, int tile, int y, int c, int x, typename T::V* v,
                       typename T::V* sums) {
    if (flat) {
        const Pixel p = pixel(t.shape, tile);
        finish<T, 1>(t, p.tile, 0, c, p.column, 1, v, sums);
    } else {
        finish<T, 1>(t, tile, y, c, x, 1, v, sums);
    }
}

// ---- pooling: output row y of tile n takes input rows y * stride - padding + [0, kernel)

REGROW_INLINE int pooled(int size, int kernel, int stride, int padding) {
    return (size + 2 * padding - kernel) / stride + 1;
}

template <class T>
static void pool_forward(const Pool& p, Worker& worker) {
    using V = typename T::V;
    constexpr int P = T::parts;
    const Shape& in = p.input.shape;
    const int rows = pooled(in.height, p.kernel_h, p.stride_h, p.padding_h),
              columns = pooled(in.width, p.kernel_w, p.stride_w, p.padding_w);
    const bool flat = rows == 1 && columns == 1;
    const V share = T::broadcast(typename T::Scalar(1.0 / (double(p.kernel_h) * p.kernel_w)));
    const V start = p.maximum ? T::broadcast(typename T::Scalar(-__builtin_inf())) : V{};
    char* lines = row_memory(worker, in);
    V* pool = (V*)worker.scratch(worker.owner, kPool, size_t(in.channels) * columns * P * sizeof(V));
    Sums<T> sums;
    sums.start(worker, kSums, in.channels);
    for (int tile = worker.first; tile < worker.last; tile++)
        for (int y = 0; y < rows; y++) {
            for (int i = 0; i < in.channels * columns * P; i++)
                pool[i] = start;
            for (int ky = 0; ky < p.kernel_h; ky++) {
                const int row = y * p.stride_h - p.padding_h + ky;
                if (row < 0 || row >= in.height)
                    continue;
                load_plain_row<T>(p.input, tile, row, lines);
                for (int c = 0; c < in.channels; c++)
                    for (int x = 0; x < columns; x++) {
                        V* to = pool + (size_t(c) * columns + x) * P;
                        const int left = x * p.stride_w - p.padding_w;
                        for (int kx = larger(0, -left); kx < smaller(p.kernel_w, in.width - left); kx++) {
                            V v[P];
                            T::load(lines + (size_t(c) * in.width + left + kx) * kLine, v);
                            for (int i = 0; i < P; i++)
                                to[i] = p.maximum ? (v[i] > to[i] ? v[i] : to[i]) : to[i] + v[i];
                        }
                    }
            }
            for (int c = 0; c < in.channels; c++)
                for (int x = 0; x < columns; x++) {
                    V* v = pool + (size_t(c) * columns + x) * P;
                    if (!p.maximum)
                        for (int i = 0; i < P; i++)
                            v[i] *= share;
                    put<T>(p.output, flat, tile, y, c, x, v, sums.partial + c * kStatistics);
                }
            sums.row_done();
        }
    sums.flush();
}

// The input's gradient of one tile is gathered in full (height x width lines a channel), then finished row by row.
// A maximum goes to the first element of its window that equals it, as in torch.
template <class T>
static void pool_backward(const Pool& p, Worker& worker) {
    using V = typename T::V;
    constexpr int P = T::parts;
    const Shape &in = p.input.shape, &out = p.gradient.shape;
    const int rows = pooled(in.height, p.kernel_h, p.stride_h, p.padding_h),
              columns = pooled(in.width, p.kernel_w, p.stride_w, p.padding_w);
    const bool flat = rows == 1 && columns == 1;
    const V share = T::broadcast(typename T::Scalar(1.0 / (double(p.kernel_h) * p.kernel_w)));
    const size_t row_vectors = size_t(in.channels) * in.width * P;
    V* sum = (V*)worker.scratch(worker.owner, kPool, row_vectors * in.height * sizeof(V));
    char* lines = p.maximum ? worker.scratch(worker.owner, kRow, in.tile_bytes()) : nullptr;
    char* incoming = worker.scratch(worker.owner, kGradientRing, out.row_bytes());
    Sums<T> sums;
    sums.start(worker, kSums, in.channels);
    for (int tile = worker.first; tile < worker.last; tile++) {
        memset((void*)sum, 0, row_vectors * in.height * sizeof(V));
        for (int y = 0; p.maximum && y < in.height; y++)
            load_plain_row<T>(p.input, tile, y, lines + y * in.row_bytes());
        const Pixel place = flat ? pixel(out, tile) : Pixel{tile, 0};
        for (int y = 0; y < rows; y++) {
            load_gradient_row<T>(p.gradient, place.tile, y, incoming, size_t(out.width) * kLine, nullptr);
            const int top = y * p.stride_h - p.padding_h;
            for (int c = 0; c < in.channels; c++)
                for (int x = 0; x < columns; x++) {
                    const int left = x * p.stride_w - p.padding_w;
                    V g[P], best[P];
                    decltype(T::all()) open[P];
                    T::load(incoming + (size_t(c) * out.width + (flat ? place.column : x)) * kLine, g);
                    for (int i = 0; i < P; i++)
                        open[i] = T::all(), best[i] = T::broadcast(typename T::Scalar(-__builtin_inf()));
                    for (int pass = p.maximum ? 0 : 1; pass < 2; pass++)
                        for (int ky = larger(0, -top); ky < smaller(p.kernel_h, in.height - top); ky++)
                            for (int kx = larger(0, -left); kx < smaller(p.kernel_w, in.width - left); kx++) {
                                const size_t at = ((size_t(top + ky) * in.channels + c) * in.width + left + kx);
                                V* to = sum + at * P;
                                if (!p.maximum) {
                                    for (int i = 0; i < P; i++)
                                        to[i] += g[i] * share;
                                    continue;
                                }
                                V v[P];
                                T::load(lines + at * kLine, v);
                                for (int i = 0; i < P; i++) {
                                    if (pass == 0) {
                                        best[i] = v[i] > best[i] ? v[i] : best[i];
                                    } else {
                                        const auto here = open[i] & (decltype(T::all()))(v[i] == best[i]);
                                        to[i] += T::where(here, g[i]);
                                        open[i] &= ~here;
                                    }
                                }
                            }
                }
        }
        for (int y = 0; y < in.height; y++) {
            for (int c = 0; c < in.channels; c++)
                for (int x = 0; x < in.width; x++)
                    finish<T, 1>(p.target, tile, y, c, x, 1, sum + ((size_t(y) * in.channels + c) * in.width + x) * P,
                                 sums.partial + c * kStatistics);
            sums.row_done();
        }
    }
    sums.flush();
}

// ---- flatten: (c, y, x) becomes channel (c * height + y) * width + x of a flat tensor; lines move, nothing else

template <class T>
static void flatten_forward(const View& view, const Target& target, Worker& worker) {
    const Shape& in = view.shape;
    char* lines = row_memory(worker, in);
    Sums<T> sums;
    sums.start(worker, kSums, target.shape.channels);
    for (int tile = worker.first; tile < worker.last; tile++)
        for (int y = 0; y < in.height; y++) {
            load_plain_row<T>(view, tile, y, lines);
            for (int c = 0; c < in.channels; c++)
                for (int x = 0; x < in.width; x++) {
                    const int feature = (c * in.height + y) * in.width + x;
                    typename T::V v[T::parts];
                    T::load(lines + (size_t(c) * in.width + x) * kLine, v);
                    put<T>(target, true, tile, 0, feature, 0, v, sums.partial + feature * kStatistics);
                }
        }
    sums.flush();
}

// Worker tiles are those of the target (images as rows and columns), not of the flat gradient.
template <class T>
static void flatten_backward(const GradientView& g, const Target& target, Worker& worker) {
    const Shape& to = target.shape;
    char* lines = row_memory(worker, g.shape);
    Sums<T> sums;
    sums.start(worker, kSums, to.channels);
    int loaded = -1;
    for (int tile = worker.first; tile < worker.last; tile++) {
        const Pixel p = pixel(g.shape, tile);
        if (p.tile != loaded)
            load_gradient_row<T>(g, p.tile, 0, lines, size_t(g.shape.width) * kLine, nullptr);
        loaded = p.tile;
        for (int y = 0; y < to.height; y++) {
            for (int c = 0; c < to.channels; c++)
                for (int x = 0; x < to.width; x++) {
                    const size_t feature = (size_t(c) * to.height + y) * to.width + x;
                    typename T::V v[T::parts];
                    T::load(lines + (feature * g.shape.width + p.column) * kLine, v);
                    finish<T, 1>(target, tile, y, c, x, 1, v, sums.partial + c * kStatistics);
                }
            sums.row_done();
        }
    }
    sums.flush();
}

}  // namespace REGROW_VARIANT
}  // namespace regrow
