// Borders: torch's [batch][channels][height][width] on one side, lines on the other.
#pragma once
#include "elementwise.hpp"

namespace regrow {
namespace REGROW_VARIANT {

REGROW_INLINE uint16_t to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return uint16_t((u + 0x8000u) >> 16);
}
REGROW_INLINE float from_bf16(uint16_t h) {
    const uint32_t u = uint32_t(h) << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

// Element i of image `lane`  <->  `lane` of the line at lines + i * step, in squares of 4 images by 4 elements:
// scalar code would take 100 us for the input of LeNet-300-100, half of its sparse training step.
typedef float Four __attribute__((vector_size(16)));
typedef uint32_t FourBits __attribute__((vector_size(16)));
typedef uint16_t FourHalves __attribute__((vector_size(8)));

REGROW_INLINE void transpose(Four* v) {
#if defined(__clang__)
#define REGROW_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define REGROW_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, FourBits{__VA_ARGS__})
#endif
    const Four a = REGROW_SHUFFLE(v[0], v[1], 0, 4, 1, 5), b = REGROW_SHUFFLE(v[0], v[1], 2, 6, 3, 7);
    const Four c = REGROW_SHUFFLE(v[2], v[3], 0, 4, 1, 5), d = REGROW_SHUFFLE(v[2], v[3], 2, 6, 3, 7);
    v[0] = REGROW_SHUFFLE(a, c, 0, 1, 4, 5), v[1] = REGROW_SHUFFLE(a, c, 2, 3, 6, 7);
    v[2] = REGROW_SHUFFLE(b, d, 0, 1, 4, 5), v[3] = REGROW_SHUFFLE(b, d, 2, 3, 6, 7);
#undef REGROW_SHUFFLE
}

template <class T>
constexpr bool squares = sizeof(typename T::Scalar) == 4;

template <class T>
static void gather_lines(char* lines, size_t step, const typename T::Scalar* from, size_t image, int count,
                         int images) {
    int done = 0;
    if constexpr (squares<T>)
        for (; images >= T::lanes && done + 4 <= count; done += 4)
            for (int lane = 0; lane < T::lanes; lane += 4) {
                Four v[4];
                for (int k = 0; k < 4; k++)
                    memcpy(&v[k], from + (lane + k) * image + done, 16);
                transpose(v);
                for (int k = 0; k < 4; k++) {
                    char* to = lines + (done + k) * step;
                    if constexpr (T::lanes == 32) {
                        const FourHalves h = __builtin_convertvector(((FourBits)v[k] + 0x8000u) >> 16, FourHalves);
                        memcpy(to + 2 * lane, &h, 8);
                    } else {
                        memcpy(to + 4 * lane, &v[k], 16);
                    }
                }
            }
    for (int i = done; i < count; i++)
        for (int lane = 0; lane < T::lanes; lane++) {
            const typename T::Scalar s = lane < images ? from[lane * image + i] : typename T::Scalar(0);
            if constexpr (T::lanes == 32)
                ((uint16_t*)(lines + i * step))[lane] = to_bf16(s);
            else
                ((typename T::Scalar*)(lines + i * step))[lane] = s;
        }
}

template <class T>
static void scatter_lines(const char* lines, size_t step, typename T::Scalar* to, size_t image, int count, int images) {
    int done = 0;
    if constexpr (squares<T>)
        for (; images >= T::lanes && done + 4 <= count; done += 4)
            for (int lane = 0; lane < T::lanes; lane += 4) {
                Four v[4];
                for (int k = 0; k < 4; k++) {
                    const char* from = lines + (done + k) * step;
                    if constexpr (T::lanes == 32) {
                        FourHalves h;
                        memcpy(&h, from + 2 * lane, 8);
                        v[k] = (Four)(__builtin_convertvector(h, FourBits) << 16);
                    } else {
                        memcpy(&v[k], from + 4 * lane, 16);
                    }
                }
                transpose(v);
                for (int k = 0; k < 4; k++)
                    memcpy(to + (lane + k) * image + done, &v[k], 16);
            }
    for (int lane = 0; lane < smaller(images, T::lanes); lane++)
        for (int i = done; i < count; i++) {
            if constexpr (T::lanes == 32)
                to[lane * image + i] = from_bf16(((const uint16_t*)(lines + i * step))[lane]);
            else
                to[lane * image + i] = ((const typename T::Scalar*)(lines + i * step))[lane];
        }
}

// Calls move(lines, step, element pointer, count, images) for every run of elements in row y of a tile.
template <class T, class Move>
REGROW_INLINE void for_runs(const Border& b, const Shape& s, int tile, int y, char* lines, Move move) {
    typename T::Scalar* data = (typename T::Scalar*)b.data;
    const size_t image = size_t(b.channels) * b.height * b.width;
    if (b.flat) {
        for (int g = 0; g < s.width; g++) {
            const int first = (tile * s.width + g) * T::lanes;
            move(lines + size_t(g) * kLine, size_t(s.width) * kLine, data + smaller(first, b.batch) * image, b.channels,
                 larger(0, b.batch - first));
        }
        return;
    }
    const int first = tile * T::lanes;
    for (int c = 0; c < s.channels; c++)
        move(lines + size_t(c) * s.width * kLine, size_t(kLine),
             data + first * image + (size_t(c) * b.height + y) * b.width, b.width, b.batch - first);
}

template <class T>
static void import_rows(const Border& border, const Target& target, Worker& worker) {
    const Shape& s = target.shape;
    const size_t image = size_t(border.channels) * border.height * border.width;
    char* lines = row_memory(worker, s);
    Sums<T> sums;
    sums.start(worker, kSums, s.channels);
    for (int tile = worker.first; tile < worker.last; tile++)
        for (int y = 0; y < s.height; y++) {
            const bool plain = !target.add && !target.gate && !target.statistics && !target.bias;
            char* row = plain ? target.data + tile * s.tile_bytes() + y * s.row_bytes() : lines;
            for_runs<T>(border, s, tile, y, row,
                        [&](char* to, size_t step, const typename T::Scalar* from, int count, int images) {
                            gather_lines<T>(to, step, from, image, count, images);
                        });
            if (plain)
                continue;
            finish_row<T>(target, tile, y, lines, sums.partial);
            sums.row_done();
        }
    sums.flush();
}

template <class T>
static void export_rows(const Border& border, const View* view, const GradientView* g, Worker& worker) {
    const Shape& s = view ? view->shape : g->shape;
    const size_t image = size_t(border.channels) * border.height * border.width;
    char* lines = row_memory(worker, s);
    for (int tile = worker.first; tile < worker.last; tile++)
        for (int y = 0; y < s.height; y++) {
            if (view)
                load_plain_row<T>(*view, tile, y, lines);
            else
                load_gradient_row<T>(*g, tile, y, lines, size_t(s.width) * kLine, nullptr);
            for_runs<T>(border, s, tile, y, lines,
                        [&](char* from, size_t step, typename T::Scalar* to, int count, int images) {
                            scatter_lines<T>(from, step, to, image, count, images);
                        });
        }
}

}  // namespace REGROW_VARIANT
}  // namespace regrow
