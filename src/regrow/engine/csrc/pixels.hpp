// Inference on few images: pixels in the lanes, where all other kernels have images there. At batch 1 those would leave
// 15 of 16 lanes idle.
//
//   fill       view, padding included  ->  planes, one for each phase of the stride
//   convolve   for each tile of up to 8 vectors of pixels, each output channel: the sum over its alive weights
//
// A plane holds all images' rows one behind the other. Rows are `pitch` apart, images `rows` rows apart, so that the
// zeros between two rows pad both, and a tap is a shift of the whole plane:
//
//     3 x 3 on 4 x 3 pixels:    . . . . .  . . .        (y, x) of the output reads (y + ky, x + kx) here:
//     pitch 5, rows 4           . a b c d  . e f        pixel y * 5 + x  +  ky * 5 + kx
//                               g h . i j  k l .
//
// The last pitch - width pixels of a row are computed too and mean nothing: 1 of 33 for an image of 32 columns, 1 of 9
// for one of 8. Whoever reads a plane leaves them out.
//
// Roofline: a fused multiply-add loads one vector, and two of three taps straddle cache lines, which costs a load port
// twice: 16 multiply-adds a cycle, half the peak of AVX-512. A tile of 128 pixels and all its input channels
// (128 channels: 42 KB) stays in L1 for all output channels; weights stream from L2, 6 bytes for up to 8 vectors.
// Dense layers and 4x1 blocks (four rows with equal positions) load a vector once for four rows.
#pragma once
#include "vector.hpp"

namespace regrow {
namespace REGROW_VARIANT {

template <class T>
struct Pixels {
    using S = typename T::Scalar;
    using V = typename T::V;
    static constexpr int lanes = T::width;

    REGROW_INLINE V load(const S* p) {
        V v;
        memcpy(&v, p, sizeof v);
        return v;
    }
    REGROW_INLINE void store(S* p, V v) { memcpy(p, &v, sizeof v); }
    REGROW_INLINE S scalar(const void* array, int c) { return ((const S*)array)[c]; }

    // a x + b [+ a' x' + b'], then ReLU: what a view makes of its tensors, in one channel
    struct Maps {
        const S *first, *second;
        S a, b, a2, b2, least;
        Maps(const PixelView& view, int c)
            : first((const S*)view.first.data + c * view.shape.plane), second(nullptr), a(1), b(0), a2(1), b2(0),
              least(view.relu ? S(0) : -S(__builtin_inf())) {
            if (view.first.scale)
                a = scalar(view.first.scale, c), b = scalar(view.first.shift, c);
            if (view.second.data)
                second = (const S*)view.second.data + c * view.shape.plane;
            if (view.second.data && view.second.scale)
                a2 = scalar(view.second.scale, c), b2 = scalar(view.second.shift, c);
        }
        S at(size_t i) const {
            S v = a * first[i] + b;
            if (second)
                v += a2 * second[i] + b2;
            return v < least ? least : v;  // NaN stays NaN
        }
        V vector(size_t i) const {
            V v = T::broadcast(a) * load(first + i) + T::broadcast(b);
            if (second)
                v += T::broadcast(a2) * load(second + i) + T::broadcast(b2);
            const V bound = T::broadcast(least);
            return v < bound ? bound : v;
        }
    };

    // Source and target have rows of the same pitch: one run over the whole plane, where a mask of ones and zeros takes
    // out what is no pixel.
    static void fill_plane(const Maps& maps, const S* mask, size_t count, S* to) {
        using Mask = typename T::Mask;
        size_t i = 0;
        for (; i + lanes <= count; i += lanes)
            store(to + i, T::where((Mask)load(mask + i), maps.vector(i)));
        for (; i < count; i++)
            to[i] = mask[i] != mask[i] ? maps.at(i) : S(0);  // all ones are a NaN
    }

    static void fill(const PixelView& view, const PixelPadding& p, int first, int last) {
        const PixelShape& s = view.shape;
        const size_t shift = size_t(p.padding_h) * p.pitch + p.padding_w;
        for (int c = first; c < last; c++) {
            S* channel = (S*)p.data + c * p.channel;
            const Maps maps(view, c);
            if (view.mask) {
                const size_t count = s.pixels();
                memset((void*)channel, 0, shift * sizeof(S));
                fill_plane(maps, (const S*)view.mask, count, channel + shift);
                memset((void*)(channel + shift + count), 0, (p.channel - shift - count) * sizeof(S));
                continue;
            }
            for (size_t i = 0; i < p.channel; i++)
                channel[i] = S(p.outside);
            for (int n = 0; n < s.images; n++)
                for (int y = 0; y < s.height; y++) {
                    const int row = y + p.padding_h;
                    const int* slot = p.slot + row % p.stride_h * p.stride_w;
                    if (row / p.stride_h < p.read_h)
                        fill_row(maps, (size_t(n) * s.rows + y) * s.pitch, s.width, p, slot,
                                 channel + (size_t(n) * p.rows + row / p.stride_h) * p.pitch);
                }
        }
    }

    // One row, computed in vectors and then dealt out to the phases: `to` is where the row of the first plane begins.
    static void fill_row(const Maps& maps, size_t from, int width, const PixelPadding& p, const int* slot, S* to) {
        S row[kWidestPixels + lanes];
        for (int x = 0; x < width; x += lanes)
            store(row + x, maps.vector(from + x));
        for (int phase = 0; phase < p.stride_w; phase++) {
            if (slot[phase] < 0)
                continue;
            const S* x = row + p.begin[phase];
            S* plane = to + slot[phase] * p.plane + p.first[phase];
            const int count = p.count[phase];
            if (p.stride_w == 1)
                memcpy(plane, x, count * sizeof(S));
            else if (p.stride_w == 2)  // known to the compiler: it shuffles vectors
                for (int i = 0; i < count; i++)
                    plane[i] = x[2 * i];
            else
                for (int i = 0; i < count; i++)
                    plane[i] = x[size_t(i) * p.stride_w];
        }
    }

    // C vectors of pixels of R output channels with equal positions. Few vectors take U weights at a time, so that
    // enough sums are under way to hide the latency of an addition.
    template <int R, int C>
    static void tile(const PixelConvolution& a, int row, size_t at) {
        constexpr int U = R * C >= 4 ? 1 : 4 / (R * C);
        const int o = row * R;
        const uint16_t* position = a.position + a.begin[o];
        const S* w[R];
        for (int r = 0; r < R; r++)
            w[r] = (const S*)a.values + a.begin[o + r];
        const uint32_t count = a.begin[o + 1] - a.begin[o];
        const S* x = (const S*)a.x + at;
        V v[U * R * C];
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) {
                V start = a.bias ? T::broadcast(scalar(a.bias, o + r)) : V{};
                if (a.add)
                    start += load((const S*)a.add + (o + r) * a.plane + at + c * lanes);
                v[r * C + c] = start;
            }
        for (int i = R * C; i < U * R * C; i++)
            v[i] = V{};
        auto step = [&](uint32_t k, V* sum) __attribute__((always_inline)) {
            const S* from = x + (a.offset ? size_t(a.offset[position[k]]) : position[k] * a.channel);
            V line[C];
#pragma GCC unroll 8
            for (int c = 0; c < C; c++)
                line[c] = load(from + c * lanes);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const V weight = T::broadcast(w[r][k]);
#pragma GCC unroll 8
                for (int c = 0; c < C; c++)
                    sum[r * C + c] += line[c] * weight;
            }
        };
        uint32_t k = 0;
        for (; k + U <= count; k += U)
#pragma GCC unroll 4
            for (int u = 0; u < U; u++)
                step(k + u, v + u * R * C);
        for (; U > 1 && k < count; k++)
            step(k, v);
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) {
                V sum = v[r * C + c];
                for (int u = 1; u < U; u++)
                    sum += v[u * R * C + r * C + c];
                S* to = (S*)a.y + (o + r) * a.plane + at + c * lanes;
                const size_t left = a.plane - at - c * lanes;
                if (left >= size_t(lanes))
                    store(to, sum);
                else  // images of one pixel: the next channel begins inside this vector
                    memcpy(to, &sum, left * sizeof(S));
            }
    }

    template <int R>
    static void convolve_rows(const PixelConvolution& a, int first, int last) {
        constexpr int registers = kVector == 64 ? 32 : 16, most = R == 1 ? 8 : (registers - 4) / (R + 1);
        using F = void (*)(const PixelConvolution&, int, size_t);
        static constexpr F table[8] = {tile<R, 1>,
                                       tile<R, smaller(2, most)>,
                                       tile<R, smaller(3, most)>,
                                       tile<R, smaller(4, most)>,
                                       tile<R, smaller(5, most)>,
                                       tile<R, smaller(6, most)>,
                                       tile<R, smaller(7, most)>,
                                       tile<R, smaller(8, most)>};
        const long vectors = long(a.count + lanes - 1) / lanes, tiles = (vectors + most - 1) / most;
        for (long i = 0; i < tiles; i++) {
            const long begin = vectors * i / tiles, end = vectors * (i + 1) / tiles;
            for (int row = first; row < last; row++)
                table[end - begin - 1](a, row, size_t(begin) * lanes);
        }
    }
    static void convolve(const PixelConvolution& a, int first, int last) {
        a.shared == 4 ? convolve_rows<4>(a, first, last) : convolve_rows<1>(a, first, last);
    }

    // A pool is a convolution whose channels each read their own plane.
    static void pool(const PixelPool& p, int first, int last) {
        const PixelShape& s = p.shape;
        for (int c = first; c < last; c++)
            for (int n = 0; n < s.images; n++)
                for (int y = 0; y < s.height; y++)
                    for (int x = 0; x < s.width; x += lanes) {
                        const S* from = (const S*)p.x + c * p.channel + (size_t(n) * p.rows + y) * p.pitch + x;
                        V v = load(from + p.offset[0]);
                        for (int t = 1; t < p.taps; t++) {
                            const V w = load(from + p.offset[t]);
                            v = p.maximum ? (w > v ? w : v) : v + w;
                        }
                        if (!p.maximum)
                            v *= T::broadcast(S(p.share));
                        S* to = (S*)p.y + c * s.plane + (size_t(n) * s.rows + y) * s.pitch + x;
                        memcpy(to, &v, smaller(lanes, s.width - x) * sizeof(S));
                    }
    }

    // A view's pixels in the order [channel][y][x][image] (to a flat tensor) or [image][channel][y][x] (to torch).
    static void pack(const PixelView& view, bool image_last, void* data, int first, int last) {
        const PixelShape& s = view.shape;
        const size_t size = size_t(s.height) * s.width, image = image_last ? 1 : s.channels * size,
                     element = image_last ? s.images : 1;
        for (int c = first; c < last; c++) {
            const Maps maps(view, c);
            for (int n = 0; n < s.images; n++) {
                S* to = (S*)data + n * image + c * size * element;
                for (int y = 0; y < s.height; y++)
                    for (int x = 0; x < s.width; x++, to += element)
                        *to = maps.at((size_t(n) * s.rows + y) * s.pitch + x);
            }
        }
    }
    // torch's memory to a tensor
    static void unpack(const void* data, const PixelShape& s, void* tensor, int first, int last) {
        for (int c = first; c < last; c++)
            for (int n = 0; n < s.images; n++)
                for (int y = 0; y < s.height; y++)
                    memcpy((S*)tensor + c * s.plane + (size_t(n) * s.rows + y) * s.pitch,
                           (const S*)data + ((size_t(n) * s.channels + c) * s.height + y) * s.width,
                           s.width * sizeof(S));
    }
};

}  // namespace REGROW_VARIANT
}  // namespace regrow
