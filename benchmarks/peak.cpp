// What this CPU reaches in the inner loops of the engine, one thread, so that a reader can tell a slow kernel from a
// slow machine:      g++ -O2 -march=native benchmarks/peak.cpp -o /tmp/peak && /tmp/peak
//
// It is for the instruction set that the compiler is told of (amx, avx512_bf16, avx512, avx2 or baseline, as the engine
// calls them), and says which. Rates count a multiplication and an addition as 2. Time is the thread's own CPU time, the
// best of 30 tries, or of as many as the first argument says.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <vector>
#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__AVX512F__)
constexpr int kVector = 64;
#elif defined(__AVX__)
constexpr int kVector = 32;
#else
constexpr int kVector = 16;
#endif
constexpr int kLanes = kVector / 4;
constexpr int kChains = kVector == 64 ? 16 : 12;  // sums that do not wait for each other, and fit the registers
typedef float Float __attribute__((vector_size(kVector), may_alias));
typedef float Unaligned __attribute__((vector_size(kVector), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(kVector), may_alias));
typedef uint16_t Halves __attribute__((vector_size(kVector / 2), may_alias));
#if defined(__SSE2__)
#define REGISTER "v"
#else
#define REGISTER "w"
#endif
#define KEEP(v) asm volatile("" : "+" REGISTER(v))

// Each 16 bits of half a vector to 32: the compilers' own conversion takes three instructions where there is one.
static inline Bits widened(const char* p) {
#if defined(__AVX512F__)
    return (Bits)_mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i*)p));
#elif defined(__AVX2__)
    return (Bits)_mm256_cvtepu16_epi32(_mm_load_si128((const __m128i*)p));
#else
    return __builtin_convertvector(*(const Halves*)p, Bits);
#endif
}

static const char* instruction_set() {
#if defined(__AMX_BF16__)
    return "amx";
#elif defined(__AVX512BF16__)
    return "avx512_bf16";
#elif defined(__AVX512F__)
    return "avx512";
#elif defined(__AVX2__) && defined(__FMA__)
    return "avx2";
#else
    return "baseline";
#endif
}

static bool runs_here() {
#if defined(__AVX512F__)
    return __builtin_cpu_supports("avx512f");
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return true;
#endif
}

static double seconds() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}
static int tries = 30;
template <class F>
static double best(F run) {
    double least = 1e9;
    for (int i = 0; i < tries; i++) {
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
static volatile uint32_t sink;

// `count` weights at random places of `channels` channels of so many bytes each
static std::vector<uint32_t> places(size_t count, size_t channels, size_t bytes) {
    std::mt19937 random(1);
    std::vector<uint32_t> p(count);
    for (auto& x : p)
        x = uint32_t(random() % channels * bytes);
    return p;
}

template <int N>
struct Sums {  // in registers as long as nobody takes their address
    Float v[N] = {};
    void keep() {
#pragma GCC unroll 16
        for (int c = 0; c < N; c++)
            asm volatile("" ::REGISTER(v[c]));
    }
};

static void registers() {
    const long n = 2000000;
    const Float weight = Float{} + 1e-9f;
    double t = best([&] {
        Sums<kChains> s;
        Float w = weight;
        for (long i = 0; i < n; i++)
#pragma GCC unroll 16
            for (int c = 0; c < kChains; c++) {
                s.v[c] = s.v[c] * w + w;
                KEEP(s.v[c]);
            }
        s.keep();
    });
    report("fp32 multiply-add, registers", double(n) * kChains * 2 * kLanes, t);
#ifdef __AVX512BF16__
    __m512bh b = (__m512bh)_mm512_set1_epi32(0);
    t = best([&] {
        Sums<16> s;
        for (long i = 0; i < n; i++)
#pragma GCC unroll 16
            for (int c = 0; c < 16; c++) {
                s.v[c] = (Float)_mm512_dpbf16_ps((__m512)s.v[c], b, b);
                KEEP(s.v[c]);
            }
        s.keep();
    });
    report("vdpbf16ps, registers", n * 16. * 64, t);
    t = best([&] {
        Sums<16> s;
        Float w = weight;
        for (long i = 0; i < n; i++)
#pragma GCC unroll 8
            for (int c = 0; c < 16; c += 2) {
                __m512i x = (__m512i)w, y = x;
                KEEP(x);
                KEEP(y);
                s.v[c] = (Float)_mm512_dpbf16_ps((__m512)s.v[c], (__m512bh)_mm512_unpacklo_epi16(x, y), b);
                s.v[c + 1] = (Float)_mm512_dpbf16_ps((__m512)s.v[c + 1], (__m512bh)_mm512_unpackhi_epi16(x, y), b);
                KEEP(s.v[c]);
                KEEP(s.v[c + 1]);
            }
        s.keep();
    });
    report("vdpbf16ps with the unpack that pairs of weights need, registers", n * 16. * 64, t);
#endif
}

// A channel is 8 lines of one vector each, which 8 sums in registers take in.
static void bursts(const char* where, size_t channels) {
    const size_t count = 1 << 15, bytes = 8 * kVector;
    char* x = memory(channels * bytes + 4096);
    const auto place = places(count, channels, bytes);
    std::vector<float> w(count, 1e-9f);
    char name[100];
    double t = best([&] {
        Sums<8> s;
        for (size_t k = 0; k < count; k++) {
            const Float weight = Float{} + w[k];
            const char* p = x + place[k];
#pragma GCC unroll 8
            for (int c = 0; c < 8; c++)
                s.v[c] += *(const Float*)(p + kVector * c) * weight;
        }
        s.keep();
    });
    snprintf(name, sizeof name, "fp32 weights, 8 lines each, in %s", where);
    report(name, count * 8. * 2 * kLanes, t);
    t = best([&] {
        Sums<8> s;
        for (size_t k = 0; k < count; k++) {
            const Float weight = Float{} + w[k];
            const char* p = x + place[k] + 4;
#pragma GCC unroll 8
            for (int c = 0; c < 8; c++)
                s.v[c] += (Float)(*(const Unaligned*)(p + kVector * c)) * weight;
        }
        s.keep();
    });
    snprintf(name, sizeof name, "the same, loads across cache lines (inference on few images), in %s", where);
    report(name, count * 8. * 2 * kLanes, t);
    t = best([&] {  // 8 lines of bf16, a vector once widened: half the memory
        Sums<8> s;
        for (size_t k = 0; k < count; k++) {
            const Float weight = Float{} + w[k];
            const char* p = x + place[k] / 2;
#pragma GCC unroll 8
            for (int c = 0; c < 8; c++) {
                s.v[c] += (Float)(widened(p + kVector / 2 * c) << 16) * weight;
            }
        }
        s.keep();
    });
    snprintf(name, sizeof name, "bf16 lines widened in the inner loop, fp32 multiply-add, in %s", where);
    report(name, count * 8. * 2 * kLanes, t);
    t = best([&] {  // a vector of bf16; odd halves by shift, even halves as they are (their low bits: noise)
        Sums<8> s;
        for (size_t k = 0; k < count; k++) {
            const Float weight = Float{} + w[k];
            const char* p = x + place[k] / 2 / kVector * kVector;
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                const Bits line = *(const Bits*)(p + kVector * c);
                s.v[2 * c] += (Float)line * weight;
                s.v[2 * c + 1] += (Float)(line << 16) * weight;
            }
        }
        s.keep();
    });
    snprintf(name, sizeof name, "bf16 lines, upper half unmasked, lower half shifted, in %s", where);
    report(name, count * 8. * 2 * kLanes, t);
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
                s.v[2 * c] = (Float)_mm512_dpbf16_ps((__m512)s.v[2 * c], (__m512bh)_mm512_unpacklo_epi16(a, b), both);
                s.v[2 * c + 1] =
                    (Float)_mm512_dpbf16_ps((__m512)s.v[2 * c + 1], (__m512bh)_mm512_unpackhi_epi16(a, b), both);
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

int main(int arguments, char** given) {
    tries = arguments > 1 ? atoi(given[1]) : tries;
    if (tries < 1) {
        fprintf(stderr, "the number of tries must be 1 or more, given %s\n", given[1]);
        return 2;
    }
    if (!runs_here()) {
        fprintf(stderr, "compiled for %s, which this CPU does not have: compile it here\n", instruction_set());
        return 2;
    }
    printf("instruction set: %s, vectors of %d bytes\n", instruction_set(), kVector);
    registers();
    bursts("L1 (32 KB)", (32 << 10) / (8 * kVector));
    bursts("L2 (512 KB)", (512 << 10) / (8 * kVector));
    bursts("L2 (1.5 MB)", (1536 << 10) / (8 * kVector));
#ifdef __AMX_BF16__
    tiles();
#endif
    const size_t bytes = size_t(256) << 20;
    char* x = memory(bytes);
    const double t = best([&] {
        Bits s[4] = {};
        for (size_t i = 0; i < bytes; i += sizeof s)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++)
                s[c] += *(const Bits*)(x + i + kVector * c);
        sink = (s[0] + s[1] + s[2] + s[3])[0];
    });
    printf("%-78s %7.1f GB/s\n", "memory, read", bytes / t / 1e9);
}
