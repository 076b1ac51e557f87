// The inner loops. A tile is C <= 8 neighbouring lines of one output channel (or of four), held in registers.
//
//   multiply          for each alive weight k of the row:   acc[0..C) += w[k] * x[offset[k] .. offset[k] + C)
//   multiply_shared   four rows with equal positions:       acc[r][0..C) += w[k][r] * x[...]        (dense layers too)
//   weight_gradient   for each alive weight k:              g[k] += sum over lanes, j of x[offset[k] + j] * d[j]
//
//            ring, one channel:   | 0 | x0  x1  x2  x3  x4  x5  x6  x7 | x8 ... | 0 |      (a cell is a 64-byte line)
//   tap kx = 0 reads 8 lines from   ^---------------------------^
//   tap kx = 1                          ^---------------------------^
//
// Roofline: one 64-byte load a fused multiply-add of 16 lanes. Load ports set the pace: L1 delivers about 1.6 random
// 8-line bursts a cycle, 180-190 GFLOP/s where registers alone reach 280 (Zen 5, 4.4 GHz). With four rows a load
// serves four multiply-adds, and the arithmetic is the limit again. bf16 takes two weights at a time:
// 2 loads, 2 unpacks and 2 vdpbf16ps do the work of 4 loads and 4 multiply-adds.
#pragma once
#include "vector.hpp"

namespace regrow {
namespace REGROW_VARIANT {

// Lines a tile may hold so that accumulators stay in registers (32 with AVX-512 and NEON, 16 otherwise).
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
template <class T>
constexpr int tile_lines() {
    if (sizeof(typename T::Scalar) == 8)
        return 2;  // fp64 is there to check gradients with
    int lines = kRegisters / 2 / T::parts, most = kTileLines * kLine / T::ring_line;
    return lines > most ? most : lines < 1 ? 1 : lines;
}
template <class T>
constexpr int shared_weight_lines() {  // the same for weight gradients, which hold stored lines in registers
    int lines = kRegisters / 2 / (4 * T::raw_parts);
    return lines < 1 ? 1 : lines;
}
template <class T>
constexpr int shared_lines() {  // lines of a tile four rows high
    int lines = kRegisters / 2 / (4 * T::parts);
    return lines < 1 ? 1 : lines;
}

REGROW_INLINE const char* place(const char* x, uint16_t offset, size_t scale) { return x + offset * scale; }

#if defined(__AVX512BF16__)
REGROW_INLINE __m512i both_weights(const uint16_t* w) {
    uint32_t u;
    memcpy(&u, w, 4);
    return _mm512_set1_epi32(int(u));
}
#endif

template <class T, int C>
REGROW_INLINE void multiply(typename T::V* v, const char* __restrict__ x, size_t scale,
                            const uint16_t* __restrict__ offset, const typename T::Weight* __restrict__ w, uint32_t k,
                            uint32_t end) {
    if constexpr (T::pairs) {
#if defined(__AVX512BF16__)
        for (; k + 1 < end; k += 2) {
            const __m512i both = both_weights(w + k);
            const char *p = place(x, offset[k], scale), *q = place(x, offset[k + 1], scale);
#pragma GCC unroll 8
            for (int c = 0; c < C; c++)
                T::pair_add(v + 2 * c, p + c * T::ring_line, q + c * T::ring_line, both);
        }
        if (k < end) {  // an odd one is paired with itself, at weight 0
            const __m512i single = _mm512_set1_epi32(w[k]);
            const char* p = place(x, offset[k], scale);
#pragma GCC unroll 8
            for (int c = 0; c < C; c++)
                T::pair_add(v + 2 * c, p + c * T::ring_line, p + c * T::ring_line, single);
        }
#endif
    } else {
        for (; k < end; k++) {
            const typename T::V weight = T::broadcast(w[k]);
            const char* p = place(x, offset[k], scale);
#pragma GCC unroll 8
            for (int c = 0; c < C; c++)
                T::multiply_add(v + c * T::parts, p + c * T::ring_line, weight);
        }
    }
}

// v: [4][C] lines; w: [entry][4]
template <class T, int C>
REGROW_INLINE void multiply_shared(typename T::V* v, const char* __restrict__ x, size_t scale,
                                   const uint16_t* __restrict__ offset, const typename T::Weight* __restrict__ w,
                                   uint32_t k, uint32_t end) {
    using V = typename T::V;
    constexpr int P = T::parts;
    if constexpr (T::pairs) {
#if defined(__AVX512BF16__)
        for (; k < end; k += 2) {
            const bool odd = k + 1 == end;
            const char *p = place(x, offset[k], scale), *q = odd ? p : place(x, offset[k + 1], scale);
            __m512i lo[C], hi[C];
#pragma GCC unroll 8
            for (int c = 0; c < C; c++) {
                __m512i a = T::line(p + c * T::ring_line), b = T::line(q + c * T::ring_line);
                asm("" : "+v"(b));
                lo[c] = _mm512_unpacklo_epi16(a, b), hi[c] = _mm512_unpackhi_epi16(a, b);
            }
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) {
                const uint32_t second = odd ? 0u : uint32_t(w[4 * k + 4 + r]) << 16;
                const __m512i both = _mm512_set1_epi32(int(w[4 * k + r] | second));
#pragma GCC unroll 8
                for (int c = 0; c < C; c++) {
                    V* s = v + (r * C + c) * P;
                    s[0] = (V)_mm512_dpbf16_ps((__m512)s[0], (__m512bh)lo[c], (__m512bh)both);
                    s[1] = (V)_mm512_dpbf16_ps((__m512)s[1], (__m512bh)hi[c], (__m512bh)both);
                }
            }
        }
#endif
    } else {
        for (; k < end; k++) {
            const char* p = place(x, offset[k], scale);
            V line[C * P];
#pragma GCC unroll 8
            for (int c = 0; c < C; c++)
                T::load_ring(p + c * T::ring_line, line + c * P);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) {
                const V weight = T::broadcast(w[4 * k + r]);
#pragma GCC unroll 16
                for (int c = 0; c < C * P; c++)
                    v[r * C * P + c] += line[c] * weight;
            }
        }
    }
}

// four weights at a time, so that their four sums over lanes cost one shuffle network and one 16-byte addition
template <class T, int C>
REGROW_INLINE void weight_gradient(const char* __restrict__ x, size_t scale, const uint16_t* __restrict__ offset,
                                   const char* __restrict__ d, typename T::Scalar* __restrict__ g, uint32_t k,
                                   uint32_t end) {
    using V = typename T::V;
    V line[C * T::raw_parts];
#pragma GCC unroll 8
    for (int c = 0; c < C; c++)
        T::load_raw(d + c * T::ring_line, line + c * T::raw_parts);
    auto step = [&](int count) __attribute__((always_inline)) {
        const char* p[4];
        V a[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            p[j] = place(x, offset[j < count ? k + j : k], scale), a[j] = V{};
#pragma GCC unroll 8
        for (int c = 0; c < C; c++)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                a[j] = T::product(a[j], p[j] + c * T::ring_line, line + c * T::raw_parts);
        add_sums<T>(g + k, a, count);
    };
    for (; k + 4 <= end; k += 4)
        step(4);
    if (k < end)
        step(int(end - k));
}

// d: four rows `row` bytes apart; g: [entry][4]
template <class T, int C>
REGROW_INLINE void weight_gradient_shared(const char* __restrict__ x, size_t scale, const uint16_t* __restrict__ offset,
                                          const char* __restrict__ d, size_t row, typename T::Scalar* __restrict__ g,
                                          uint32_t k, uint32_t end) {
    using V = typename T::V;
    constexpr int R = T::raw_parts;
    V line[4][C * R];
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++)
            T::load_raw(d + r * row + c * T::ring_line, line[r] + c * R);
    for (; k < end; k++) {
        const char* p = place(x, offset[k], scale);
        V a[4] = {};
#pragma GCC unroll 8
        for (int c = 0; c < C; c++)
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++)
                a[r] = T::product(a[r], p + c * T::ring_line, line[r] + c * R);
        add_sums<T>(g + 4 * k, a, 4);
    }
}

}  // namespace REGROW_VARIANT
}  // namespace regrow
