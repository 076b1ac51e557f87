// What this CPU reaches in the inner loops of the engine, one thread, so that a reader can tell a slow kernel from a
// slow machine:      g++ -O2 -march=native benchmarks/peak.cpp -o /tmp/peak && /tmp/peak
//
// Rates count a multiplication and an addition as 2. Time is the thread's own CPU time, the best of several tries.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <vector>

static double seconds() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}
template <class F>
static double best(F run) {
    double least = 1e9;
    for (int i = 0; i < 30; i++) {
        const double begin = seconds();
        run();
        const double t = seconds() - begin;
        least = t < least ? t : least;
    }
    return least;
}
static void report(const char* what, double flops, double t) { printf("%-78s %7.1f GFLOP/s\n", what, flops / t / 1e9); }
static char* memory(size_t bytes) {
    char* p = (char*)aligned_alloc(1 << 21, (bytes + (1 << 21)) >> 21 << 21);
    memset(p, 0x3f, bytes);  // 0.75: no denormals
    return p;
}
static volatile float sink;
#define KEEP(v) asm volatile("" : "+v"(v))

// `count` weights at random places of `channels` channels of 8 lines each, 8 sums in registers
static std::vector<uint32_t> places(size_t count, size_t channels, size_t bytes) {
    std::mt19937 random(1);
    std::vector<uint32_t> p(count);
    for (auto& x : p)
        x = uint32_t(random() % channels * bytes);
    return p;
}

template <int N>
struct Sums {  // in registers as long as nobody takes their address
    __m512 v[N] = {};
    void keep() {
#pragma GCC unroll 16
        for (int c = 0; c < N; c++)
            asm volatile("" ::"v"(v[c]));
    }
};

static void registers() {
    const long n = 2000000;
    const __m512 weight = _mm512_set1_ps(1e-9f);
    double t = best([&] {
        Sums<16> s;
        __m512 w = weight;
        for (long i = 0; i < n; i++)
#pragma GCC unroll 16
            for (int c = 0; c < 16; c++) {
                s.v[c] = _mm512_fmadd_ps(s.v[c], w, w);
                KEEP(s.v[c]);
            }
        s.keep();
    });
    report("fp32 multiply-add, registers", n * 16. * 32, t);
#ifdef __AVX512BF16__
    __m512bh b = (__m512bh)_mm512_set1_epi32(0);
    t = best([&] {
        Sums<16> s;
        __m512 w = weight;
        for (long i = 0; i < n; i++)
#pragma GCC unroll 16
            for (int c = 0; c < 16; c++) {
                s.v[c] = _mm512_dpbf16_ps(s.v[c], b, b);
                KEEP(s.v[c]);
            }
        s.keep();
    });
    report("vdpbf16ps, registers", n * 16. * 64, t);
    t = best([&] {
        Sums<16> s;
        __m512 w = weight;
        for (long i = 0; i < n; i++)
#pragma GCC unroll 8
            for (int c = 0; c < 16; c += 2) {
                __m512i x = _mm512_castps_si512(w), y = x;
                KEEP(x);
                KEEP(y);
                s.v[c] = _mm512_dpbf16_ps(s.v[c], (__m512bh)_mm512_unpacklo_epi16(x, y), b);
                s.v[c + 1] = _mm512_dpbf16_ps(s.v[c + 1], (__m512bh)_mm512_unpackhi_epi16(x, y), b);
                KEEP(s.v[c]);
                KEEP(s.v[c + 1]);
            }
        s.keep();
    });
    report("vdpbf16ps with the unpack that pairs of weights need, registers", n * 16. * 64, t);
#endif
}

static void bursts(const char* where, size_t channels) {
    const size_t count = 1 << 15;
    char* x = memory(channels * 512 + 4096);
    const auto place = places(count, channels, 512);
    std::vector<float> w(count, 1e-9f);
    char name[100];
    double t = best([&] {
        Sums<8> s;
        for (size_t k = 0; k < count; k++) {
            const __m512 weight = _mm512_set1_ps(w[k]);
            const char* p = x + place[k];
#pragma GCC unroll 8
            for (int c = 0; c < 8; c++)
                s.v[c] = _mm512_fmadd_ps(_mm512_load_ps(p + 64 * c), weight, s.v[c]);
        }
        s.keep();
    });
    snprintf(name, sizeof name, "fp32 weights, 8 lines each, in %s", where);
    report(name, count * 8. * 32, t);
    t = best([&] {
        Sums<8> s;
        for (size_t k = 0; k < count; k++) {
            const __m512 weight = _mm512_set1_ps(w[k]);
            const char* p = x + place[k] + 4;
#pragma GCC unroll 8
            for (int c = 0; c < 8; c++)
                s.v[c] = _mm512_fmadd_ps(_mm512_loadu_ps(p + 64 * c), weight, s.v[c]);
        }
        s.keep();
    });
    snprintf(name, sizeof name, "the same, loads across cache lines (inference on few images), in %s", where);
    report(name, count * 8. * 32, t);
    t = best([&] {  // 8 lines of 16 bf16 each: half the memory
        Sums<8> s;
        for (size_t k = 0; k < count; k++) {
            const __m512 weight = _mm512_set1_ps(w[k]);
            const char* p = x + place[k] / 2;
#pragma GCC unroll 8
            for (int c = 0; c < 8; c++) {
                const __m512i line = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i*)(p + 32 * c)));
                s.v[c] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(line, 16)), weight, s.v[c]);
            }
        }
        s.keep();
    });
    snprintf(name, sizeof name, "bf16 lines widened in the inner loop, fp32 multiply-add, in %s", where);
    report(name, count * 8. * 32, t);
    t = best([&] {  // a 64-byte line of 32 bf16; odd halves by shift, even halves as they are (their low bits: noise)
        Sums<8> s;
        for (size_t k = 0; k < count; k++) {
            const __m512 weight = _mm512_set1_ps(w[k]);
            const char* p = x + place[k] / 2 / 64 * 64;
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                const __m512i line = _mm512_load_si512(p + 64 * c);
                s.v[2 * c] = _mm512_fmadd_ps(_mm512_castsi512_ps(line), weight, s.v[2 * c]);
                s.v[2 * c + 1] =
                    _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(line, 16)), weight, s.v[2 * c + 1]);
            }
        }
        s.keep();
    });
    snprintf(name, sizeof name, "bf16 lines, upper half unmasked, lower half shifted, in %s", where);
    report(name, count * 8. * 32, t);
#ifdef __AVX512BF16__
    t = best([&] {
        Sums<8> s;
        for (size_t k = 0; k + 1 < count; k += 2) {
            const __m512bh both = (__m512bh)_mm512_set1_epi32(int(place[k]) & 1);
            const char *p = x + place[k] / 2 / 64 * 64, *q = x + place[k + 1] / 2 / 64 * 64;
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                __m512i a = _mm512_load_si512(p + 64 * c), b = _mm512_load_si512(q + 64 * c);
                KEEP(b);
                s.v[2 * c] = _mm512_dpbf16_ps(s.v[2 * c], (__m512bh)_mm512_unpacklo_epi16(a, b), both);
                s.v[2 * c + 1] = _mm512_dpbf16_ps(s.v[2 * c + 1], (__m512bh)_mm512_unpackhi_epi16(a, b), both);
            }
        }
        s.keep();
    });
    snprintf(name, sizeof name, "vdpbf16ps on pairs of weights, 4 lines of 32 images, in %s", where);
    report(name, count * 8. * 32, t);
#endif
    free(x);
}

#ifdef __AMX_BF16__
// 16 outputs x 16 pixels-or-images += 32 inputs: what one alive block of a 16 x 32 block pattern would be. Of
// unstructured weights at density d such a block holds 512 d: the useful share of the rate.
static void tiles() {
    if (syscall(SYS_arch_prctl, 0x1023, 18))
        return;
    struct alignas(64) {
        uint8_t palette = 1, row = 0, reserved[14] = {};
        uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
    char* x = memory(64 << 10);
    const long n = 200000;
    double t = best([&] {
        for (long i = 0; i < n; i++) {
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    });
    report("AMX bf16 tiles, registers", n * 4. * 2 * 16 * 16 * 32, t);
    const auto place = places(n, 32, 1024);
    t = best([&] {
        for (long i = 0; i + 1 < n; i += 2) {
            _tile_loadd(4, x + place[i], 64);
            _tile_loadd(6, x + place[i + 1], 64);
            _tile_loadd(7, x + (place[i] ^ 1024), 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
        }
    });
    report("AMX bf16 tiles, three loads from L1 for two products", n * 2. * 16 * 16 * 32, t);
    _tile_release();
    free(x);
}
#endif

int main() {
    registers();
    bursts("L1 (32 KB)", 64);
    bursts("L2 (512 KB)", 1024);
    bursts("L2 (1.5 MB)", 3072);
#ifdef __AMX_BF16__
    tiles();
#endif
    char* x = memory(256 << 20);
    const double t = best([&] {
        __m512i s = _mm512_setzero_si512();
        for (size_t i = 0; i < size_t(256) << 20; i += 64)
            s = _mm512_add_epi64(s, _mm512_load_si512(x + i));
        sink = float(_mm512_reduce_add_epi64(s));
    });
    printf("%-78s %7.1f GB/s\n", "memory, read", (256 << 20) / t / 1e9);
}
