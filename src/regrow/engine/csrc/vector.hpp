// Vectors of the machine at hand, and how the three storage types are read into and written from them.
//
// Everything is written with the compilers' vector extensions; intrinsics appear only for what these cannot say
// (vdpbf16ps, streaming stores, the four-way sum on AVX-512), each with a portable version beside it.
#pragma once
#include <cstring>

#include "tasks.hpp"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define REGROW_INLINE static inline __attribute__((always_inline))

namespace regrow {
namespace REGROW_VARIANT {

#if defined(__AVX512F__)
constexpr int kVector = 64;
#elif defined(__AVX__)
constexpr int kVector = 32;
#else
constexpr int kVector = 16;
#endif
typedef float Float __attribute__((vector_size(kVector)));
typedef uint32_t Bits __attribute__((vector_size(kVector)));

template <class T>
REGROW_INLINE constexpr T smaller(T a, T b) {
    return a < b ? a : b;
}
template <class T>
REGROW_INLINE constexpr T larger(T a, T b) {
    return a > b ? a : b;
}

REGROW_INLINE void prefetch(const char* p) { __builtin_prefetch(p, 0, 2); }

template <class V>
REGROW_INLINE void stream(char* p, V v) {
#if defined(__AVX512F__)
    _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(__AVX__)
    _mm256_stream_si256((__m256i*)p, (__m256i)v);
#elif defined(__SSE2__)
    _mm_stream_si128((__m128i*)p, (__m128i)v);
#else
    *(V*)p = v;
#endif
}

// Odd factors without a pattern (the finalizer "lowbias32"), one for each image of a line, for dropout.
struct LaneFactors {
    alignas(kLine) uint32_t of[32];
    constexpr LaneFactors() : of() {
        for (uint32_t i = 0; i < 32; i++) {
            uint32_t x = 0x9e3779b9u * (i + 1);
            x = (x ^ (x >> 16)) * 0x7feb352du;
            x = (x ^ (x >> 15)) * 0x846ca68bu;
            of[i] = (x ^ (x >> 16)) | 1;
        }
    }
};
constexpr LaneFactors kLaneFactors;

// A storage type: `parts` vectors of arithmetic make up one line.
template <class S, class Unsigned>
struct Plain {
    using Scalar = S;
    using Weight = S;
    typedef S V __attribute__((vector_size(kVector)));
    typedef Unsigned Mask __attribute__((vector_size(kVector)));
    static constexpr int lanes = kLine / sizeof(S), parts = kLine / kVector, width = kVector / sizeof(S);
    static constexpr bool pairs = false;  // true: the inner loop takes two alive weights at a time
    static constexpr bool tiles = false;  // true: convolutions may come as dense tiles

    REGROW_INLINE void load(const char* p, V* v) {
        for (int i = 0; i < parts; i++)
            v[i] = *(const V*)(p + i * kVector);
    }
    REGROW_INLINE void store(char* p, const V* v) {
        for (int i = 0; i < parts; i++)
            *(V*)(p + i * kVector) = v[i];
    }
    REGROW_INLINE void store_stream(char* p, const V* v) {
        for (int i = 0; i < parts; i++)
            stream(p + i * kVector, v[i]);
    }
    REGROW_INLINE void multiply_add(V* sum, const char* p, V weight) {
        for (int i = 0; i < parts; i++)
            sum[i] += *(const V*)(p + i * kVector) * weight;
    }
    // Rings hold lines as stored, unless a storage type says otherwise.
    static constexpr int ring_line = kLine;
    REGROW_INLINE void store_ring(char* p, const V* v) { store(p, v); }
    REGROW_INLINE void load_ring(const char* p, V* v) { load(p, v); }
    static constexpr int raw_parts = parts;  // grad-weight multiplies stored lines with stored lines
    REGROW_INLINE void load_raw(const char* p, V* v) { load(p, v); }
    REGROW_INLINE V product(V sum, const char* p, const V* line) {
        for (int i = 0; i < parts; i++)
            sum += *(const V*)(p + i * kVector) * line[i];
        return sum;
    }
    REGROW_INLINE V broadcast(S s) { return s - V{}; }
    REGROW_INLINE V where(Mask m, V v) { return (V)(m & (Mask)v); }
    REGROW_INLINE Mask positive(V v) { return (Mask)(v > V{}); }
    REGROW_INLINE V rectify(V v) { return V{} > v ? V{} : v; }  // NaN stays NaN
    REGROW_INLINE Mask all() { return ~Mask{}; }
    REGROW_INLINE double sum(V v) {  // by halves: one by one, each addition would wait for the one before
        double s[width];
        for (int i = 0; i < width; i++)
            s[i] = v[i];
#pragma GCC unroll 4
        for (int n = width / 2; n > 0; n /= 2)
            for (int i = 0; i < n; i++)
                s[i] += s[i + n];
        return s[0];
    }
    // Lanes that dropout keeps; `key`, as good as random, names the line, `part` the vector in it. A product with an odd
    // factor takes each value for one key: no lane is biased, and two lanes share no pattern that 6 million lines show.
    REGROW_INLINE Mask kept(uint32_t key, int part, uint32_t keep) {
        const Bits x = key * *(const Bits*)(kLaneFactors.of + part * (kVector / 4));
        if constexpr (sizeof(S) == 4)
            return (Mask)(x < (keep - Bits{}));
        Mask m;
        for (int i = 0; i < width; i++)
            m[i] = x[i] < keep ? ~0ull : 0;
        return m;
    }
};

struct F32 : Plain<float, uint32_t> {};
struct F64 : Plain<double, uint64_t> {};

// To nearest, ties away from zero, in the upper half. One addition; the NaN that arithmetic makes stays a NaN.
REGROW_INLINE Bits rounded(Float v) { return (Bits)v + 0x8000u; }

// bf16 in memory, fp32 in registers.
struct B16 : Plain<float, uint32_t> {
    static constexpr int lanes = 32, parts = 2 * kLine / kVector;
#if defined(__AVX512BF16__)
    // Two lines p, q interleave to pairs (p_i, q_i), and vdpbf16ps adds w_p p_i + w_q q_i in fp32.
    // unpacklo/hi leave the images in a mixed order, which packus undoes when the line is stored.
    using Weight = uint16_t;
    static constexpr bool pairs = true;
    REGROW_INLINE __m512i line(const char* p) { return _mm512_load_si512(p); }
    REGROW_INLINE void load(const char* p, V* v) {
        v[0] = (V)_mm512_unpacklo_epi16(_mm512_setzero_si512(), line(p));
        v[1] = (V)_mm512_unpackhi_epi16(_mm512_setzero_si512(), line(p));
    }
    REGROW_INLINE __m512i pack(const V* v) {
        return _mm512_packus_epi32((__m512i)(rounded(v[0]) >> 16), (__m512i)(rounded(v[1]) >> 16));
    }
    REGROW_INLINE void store(char* p, const V* v) { _mm512_store_si512(p, pack(v)); }
    REGROW_INLINE void store_stream(char* p, const V* v) { stream(p, pack(v)); }
    REGROW_INLINE void pair_add(V* sum, const char* p, const char* q, __m512i weights) {
        __m512i a = line(p), b = line(q);
        asm("" : "+v"(b));  // else gcc folds one load into both unpacks: 24 loads where 16 do
        sum[0] = (V)_mm512_dpbf16_ps((__m512)sum[0], (__m512bh)_mm512_unpacklo_epi16(a, b), (__m512bh)weights);
        sum[1] = (V)_mm512_dpbf16_ps((__m512)sum[1], (__m512bh)_mm512_unpackhi_epi16(a, b), (__m512bh)weights);
    }
    static constexpr int raw_parts = 1;
    REGROW_INLINE void load_raw(const char* p, V* v) { *v = (V)line(p); }
    REGROW_INLINE V product(V sum, const char* p, const V* d) {  // sums over pairs of images: no unpacking at all
        return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)line(p), (__m512bh)(__m512i)*d);
    }
#else
    // A 32-bit lane holds two images; shifting and masking give both as fp32. Rings hold them so, and the inner loops
    // are those of fp32.
    using Weight = float;
#if defined(__AMX_BF16__)
    static constexpr bool tiles = true;
#endif
    REGROW_INLINE void load(const char* p, V* v) {
        for (int i = 0; i < parts / 2; i++) {
            Bits u = *(const Bits*)(p + i * kVector);
            v[2 * i] = (V)(u << 16);
            v[2 * i + 1] = (V)(u & 0xffff0000u);
        }
    }
    REGROW_INLINE Bits pack(const V* v) { return (rounded(v[0]) >> 16) | (rounded(v[1]) & 0xffff0000u); }
    REGROW_INLINE void store(char* p, const V* v) {
        for (int i = 0; i < parts / 2; i++)
            *(Bits*)(p + i * kVector) = pack(v + 2 * i);
    }
    REGROW_INLINE void store_stream(char* p, const V* v) {
        for (int i = 0; i < parts / 2; i++)
            stream(p + i * kVector, pack(v + 2 * i));
    }
    static constexpr int ring_line = 2 * kLine;
    REGROW_INLINE void store_ring(char* p, const V* v) {
        for (int i = 0; i < parts; i++)
            *(V*)(p + i * kVector) = v[i];
    }
    REGROW_INLINE void load_ring(const char* p, V* v) {
        for (int i = 0; i < parts; i++)
            v[i] = *(const V*)(p + i * kVector);
    }
    REGROW_INLINE void multiply_add(V* sum, const char* p, V weight) {
        for (int i = 0; i < parts; i++)
            sum[i] += *(const V*)(p + i * kVector) * weight;
    }
    static constexpr int raw_parts = parts;
    REGROW_INLINE void load_raw(const char* p, V* v) { load_ring(p, v); }
    REGROW_INLINE V product(V sum, const char* p, const V* line) {
        for (int i = 0; i < parts; i++)
            sum += *(const V*)(p + i * kVector) * line[i];
        return sum;
    }
#endif
};

// out[0..count) += lane sums of four vectors
template <class T>
REGROW_INLINE void add_sums(typename T::Scalar* out, const typename T::V* a, int count) {
#if defined(__AVX512F__)
    if constexpr (sizeof(typename T::Scalar) == 4) {
        __m512 b[4];
        for (int i = 0; i < 4; i++)
            b[i] = (__m512)a[i];
        __m512 t0 = _mm512_add_ps(_mm512_unpacklo_ps(b[0], b[1]), _mm512_unpackhi_ps(b[0], b[1]));
        __m512 t1 = _mm512_add_ps(_mm512_unpacklo_ps(b[2], b[3]), _mm512_unpackhi_ps(b[2], b[3]));
        __m512d d0 = _mm512_castps_pd(t0), d1 = _mm512_castps_pd(t1);
        __m512 t2 =
            _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(d0, d1)), _mm512_castpd_ps(_mm512_unpackhi_pd(d0, d1)));
        __m256 u = _mm256_add_ps(_mm512_castps512_ps256(t2), _mm512_extractf32x8_ps(t2, 1));
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(u), _mm256_extractf128_ps(u, 1));
        if (count == 4) {
            _mm_storeu_ps((float*)out, _mm_add_ps(s, _mm_loadu_ps((float*)out)));
        } else {
            __mmask8 m = __mmask8((1 << count) - 1);
            _mm_mask_storeu_ps((float*)out, m, _mm_add_ps(s, _mm_maskz_loadu_ps(m, (float*)out)));
        }
        return;
    }
#endif
    for (int j = 0; j < count; j++) {
        typename T::Scalar s = 0;
        for (int i = 0; i < T::width; i++)
            s += a[j][i];
        out[j] += s;
    }
}

}  // namespace REGROW_VARIANT
}  // namespace regrow
