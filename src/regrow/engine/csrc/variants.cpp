// Which compiled variants this CPU can run, and which one is used.
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "plan.hpp"
#if defined(REGROW_HAS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace regrow {

#define REGROW_DECLARE(name)      \
    namespace name {              \
    extern const Variant variant; \
    }
REGROW_DECLARE(baseline)
#if defined(__x86_64__)
REGROW_DECLARE(avx2)
REGROW_DECLARE(avx512)
#if defined(REGROW_HAS_BF16)
REGROW_DECLARE(avx512_bf16)
#endif
#if defined(REGROW_HAS_AMX)
REGROW_DECLARE(amx)

// clang 14 compiles the tile intrinsics and knows no name to ask __builtin_cpu_supports for them.
static bool has_tiles() {
    unsigned a, b, c, d = 0;
    constexpr unsigned kBFloat16 = 1u << 22, kTile = 1u << 24;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBFloat16) && (d & kTile);
}

// Linux gives a process tile registers on request.
static bool tiles_granted() {
    constexpr long kRequest = 0x1023, kTileData = 18;
    static const bool granted = has_tiles() && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
    return granted;
}
#endif
#endif

std::vector<const Variant*> runnable_variants() {  // fastest first
    std::vector<const Variant*> list;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    // Intel executes vdpbf16ps on one port and unpacks on one other: two thirds of the speed of fp32 multiply-adds on
    // lines that were widened when the ring was filled (WRN-22-2 at 90 %: 206 ms against 174). AMD has twice the rate.
    const bool fast_bf16 = __builtin_cpu_is("amd");
#if defined(REGROW_HAS_AMX)
    if (avx512 && tiles_granted())
        list.push_back(&amx::variant);
#endif
    if (avx512 && !fast_bf16)
        list.push_back(&avx512::variant);
#if defined(REGROW_HAS_BF16)
    if (avx512 && __builtin_cpu_supports("avx512bf16"))
        list.push_back(&avx512_bf16::variant);
#endif
    if (avx512 && fast_bf16)
        list.push_back(&avx512::variant);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        list.push_back(&avx2::variant);
#endif
    list.push_back(&baseline::variant);
    return list;
}

const Variant* best_variant() {
    const auto list = runnable_variants();
    const char* wanted = std::getenv("REGROW_ISA");
    if (!wanted || !*wanted)
        return list.front();
    std::string names;
    for (const Variant* v : list) {
        if (!strcmp(v->name, wanted))
            return v;
        names += names.empty() ? v->name : std::string(", ") + v->name;
    }
    throw std::invalid_argument(std::string("REGROW_ISA=") + wanted + ": this CPU runs " + names);
}

}  // namespace regrow
