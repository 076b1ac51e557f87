// One variant of the kernels: compiled once for every instruction set, with REGROW_VARIANT naming it.
// Only plain C headers are included here: an inline function of the standard library, compiled for AVX-512, could be
// the copy that the linker keeps for everybody.
#include "borders.hpp"
#include "convolution.hpp"
#include "elementwise.hpp"
#include "pixels.hpp"

namespace regrow {
namespace REGROW_VARIANT {

template <class T, class Arithmetic = T>
static constexpr Kernels kernels() {
    using P = Pixels<Arithmetic>;
    return {convolution_forward<T>, convolution_backward<T>, materialise<T>,      gradient<T>,    pool_forward<T>,
            pool_backward<T>,       flatten_forward<T>,      flatten_backward<T>, import_rows<T>, export_rows<T>,
            {P::fill, P::convolve, P::pool, P::pack, P::unpack}};
}

extern const Variant variant;
#define REGROW_TEXT(x) #x
#define REGROW_NAME(x) REGROW_TEXT(x)
const Variant variant = {REGROW_NAME(REGROW_VARIANT), B16::pairs, B16::tiles, kernels<F32>(), kernels<B16, F32>(), kernels<F64>()};

}  // namespace REGROW_VARIANT
}  // namespace regrow
