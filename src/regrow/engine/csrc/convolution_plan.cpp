// The geometry of one convolution: which ring rows and columns its taps read, forward and transposed.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "plan.hpp"

namespace regrow {
namespace {

int floor_divide(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
int modulo(int a, int b) { return a - b * floor_divide(a, b); }

// Tap k contributes to inputs i with (i + padding - k * dilation) divisible by the stride, from output
// (i - i % stride) / stride + shift.
struct TransposedTap {
    int parity, shift;
};
TransposedTap transposed_tap(int k, int stride, int padding, int dilation) {
    const int parity = modulo(k * dilation - padding, stride);
    return {parity, (parity + padding - k * dilation) / stride};
}

}  // namespace

ConvolutionShapes convolution_shapes(const Layer& layer, size_t weights, int line, const Shape& in, const Shape& out) {
    const Geometry& g = layer.geometry;
    const int taps = g.kernel_h * g.kernel_w;
    ConvolutionShapes s;
    s.product = taps == 1 && g.stride_h == 1 && g.stride_w == 1 && g.padding_h == 0 && g.padding_w == 0;

    const int tile = kTileLines * kLine / line;  // lines of a tile, as tile_lines() in tile.hpp
    RingShape& x = s.input_ring;
    x.line = s.gradient_ring.line = line;
    const int reach = (out.width - 1) * g.stride_w + (g.kernel_w - 1) * g.dilation_w + 1;
    x.rows = (g.kernel_h - 1) * g.dilation_h + 1;
    x.phases = g.stride_w, x.left = g.padding_w;
    x.phase_pitch = (std::max(reach, in.width + g.padding_w) + x.phases - 1) / x.phases;
    x.pitch = x.phases * x.phase_pitch;
    s.input_taps.positions = x.rows;
    for (int v = 0; v < x.rows; v++)
        for (int ky = 0; ky < g.kernel_h; ky++)
            for (int kx = 0; kx < g.kernel_w; kx++) {
                const int column = kx * g.dilation_w;
                s.input_taps.lines.push_back(uint32_t((v + ky * g.dilation_h) % x.rows) * x.pitch +
                                             column % x.phases * x.phase_pitch + column / x.phases);
            }

    RingShape& d = s.gradient_ring;
    int first = 0, last = 0, left = 0, right = out.width;
    for (int ky = 0; ky < g.kernel_h; ky++) {
        const int shift = transposed_tap(ky, g.stride_h, g.padding_h, g.dilation_h).shift;
        first = std::min(first, shift), last = std::max(last, shift);
    }
    for (int kx = 0; kx < g.kernel_w; kx++) {
        const TransposedTap tap = transposed_tap(kx, g.stride_w, g.padding_w, g.dilation_w);
        const int columns = (in.width - tap.parity + g.stride_w - 1) / g.stride_w;
        left = std::max(left, -tap.shift), right = std::max(right, columns + tap.shift);
    }
    s.gradient_first = first, s.gradient_last = last;
    d.rows = last - first + 1, d.phases = 1, d.left = left, d.pitch = d.phase_pitch = left + right;
    s.gradient_taps.positions = d.rows;
    for (int ky = 0; ky < g.kernel_h; ky++)
        for (int kx = 0; kx < g.kernel_w; kx++)
            s.class_of.push_back(transposed_tap(ky, g.stride_h, g.padding_h, g.dilation_h).parity * g.stride_w +
                                 transposed_tap(kx, g.stride_w, g.padding_w, g.dilation_w).parity);
    for (int v = 0; v < d.rows; v++)
        for (int ky = 0; ky < g.kernel_h; ky++)
            for (int kx = 0; kx < g.kernel_w; kx++) {
                const int row = (v + transposed_tap(ky, g.stride_h, g.padding_h, g.dilation_h).shift - first) % d.rows;
                s.gradient_taps.lines.push_back(uint32_t(row) * d.pitch + left +
                                                transposed_tap(kx, g.stride_w, g.padding_w, g.dilation_w).shift);
            }

    const size_t x_lines = size_t(g.kernel_h) * (x.phases * tile + (g.kernel_w - 1) * g.dilation_w);
    const size_t d_lines = size_t(d.rows) * (tile + (g.kernel_w - 1) * g.dilation_w / g.stride_w);
    // The few multiplications of a linear layer's weight do not pay for packing blocks: one, in the canonical order.
    const bool linear = s.product && in.height == 1 && weights / layer.out < size_t(layer.in) / 4;
    s.input_block = linear ? layer.in
                           : channels_per_block(layer.in, x_lines * line, weights / layer.out,
                                                s.product ? 1 : size_t(x.rows) * x.pitch);
    s.gradient_block = channels_per_block(
        layer.out, d_lines * line, weights / (size_t(layer.in) * g.stride_h * g.stride_w), size_t(d.rows) * d.pitch);
    if (!s.product && (size_t(x.rows) * x.pitch > 65536 || size_t(d.rows) * d.pitch > 65536))
        throw std::invalid_argument("a kernel that spans " + std::to_string(x.rows) + " rows of " +
                                    std::to_string(in.width) + " columns is wider than the engine's 65536 lines");
    return s;
}

}  // namespace regrow
