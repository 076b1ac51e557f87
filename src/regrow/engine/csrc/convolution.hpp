// A sparse convolution with everything around it, row by row.
//
//   forward, for each output row y:                        backward, for each row r:
//     fill the ring with the view's next rows                fill the input ring and the gradient ring
//     for each tile of columns                               for each tile: weight gradients at alive positions
//       for each block of input channels                     for each parity class of the stride, each tile:
//         for each output channel: multiply                    the transposed pattern: multiply, finish
//       finish: bias, residual, statistics, store
//
// The ring of a 32-channel 32x32 image is 3 x 34 x 32 lines = 209 KB: it lives in L2, a 16-channel block of a tile
// (3 x 10 x 16 lines = 31 KB) in L1. Partial sums of blocks wait in a scratch of one tile per output channel.
// Each row reads and writes every stream once: 1.5 GB a WRN-22-2 training step in fp32, hidden behind the arithmetic
// by prefetching the next row's lines while this row is computed.
#pragma once
#include "amx.hpp"

namespace regrow {
namespace REGROW_VARIANT {

REGROW_INLINE void clear_row(char* ring, const RingShape& shape, int channels, int slot) {
    for (int c = 0; c < channels; c++)
        memset(ring + c * shape.channel_bytes() + size_t(slot) * shape.pitch * shape.line, 0,
               size_t(shape.pitch) * shape.line);
}

// A ring for rows of `width`, zero beside them, where no pixel will come.
REGROW_INLINE char* ring_memory(Worker& worker, int slot, const RingShape& shape, int channels, int width) {
    const size_t bytes = channels * shape.channel_bytes(), row = size_t(shape.pitch) * shape.line,
                 before = size_t(shape.left) * shape.line, until = before + size_t(width) * shape.line;
    char* ring = worker.scratch(worker.owner, slot, bytes);
    if (shape.phases > 1)
        memset(ring, 0, bytes);
    for (char* at = ring; shape.phases == 1 && row > until - before && at < ring + bytes; at += row)
        memset(at, 0, before), memset(at + until, 0, row - until);
    return ring;
}

// Fills the input ring up to padded row `until`, from a view; remembers what is there.
template <class T>
struct InputRing {
    const View& view;
    const RingShape& shape;
    int padding;
    char* data;
    int filled;
    void reach(int tile, int from, int until) {
        if (filled < from)
            filled = from;
        for (; filled < until; filled++) {
            const int row = filled - padding, slot = filled % shape.rows;
            if (row < 0 || row >= view.shape.height) {
                clear_row(data, shape, view.shape.channels, slot);
                continue;
            }
            load_row<T, T::ring_line != kLine>(view, tile, row,
                                               {data + size_t(slot) * shape.pitch * T::ring_line, shape.channel_bytes(),
                                                shape.phases, shape.phase_pitch, shape.left});
        }
    }
};

// A 1x1 convolution without stride or padding reads an unfused tensor where it lies.
REGROW_INLINE bool reads_in_place(const View& view, const RingShape& ring, const Geometry& g) {
    const bool row_by_row = ring.rows == 1 && g.stride_h == 1 && g.padding_h == 0;
    return view.plain() && row_by_row && ring.phases == 1 && ring.left == 0 && ring.pitch == view.shape.width;
}

template <class T>
static void convolution_forward(const ConvolutionForward& f, Worker& worker) {
    using V = typename T::V;
    if constexpr (T::tiles)
        if (f.tiles.data)
            return convolution_forward_tiles<T>(f, worker);
    const Geometry& geometry = f.geometry;
    const Shape &in = f.input.shape, &out = f.output.shape;
    const RingShape& ring = f.ring;
    const bool direct = T::ring_line == kLine && reads_in_place(f.input, ring, geometry);
    char* memory = direct ? nullptr : ring_memory(worker, kInputRing, ring, in.channels, in.width);
    V* accumulators =
        (V*)worker.scratch(worker.owner, kAccumulators, size_t(out.channels) * kTileLines * T::parts * sizeof(V));
    Sums<T> sums;
    sums.start(worker, kSums, out.channels);
    const Tiles tiles = Tiles::of(out.width, tile_lines<T>());
    for (int tile = worker.first; tile < worker.last; tile++) {
        InputRing<T> input{f.input, ring, geometry.padding_h, memory, 0};
        for (int y = 0; y < out.height; y++) {
            const int top = y * geometry.stride_h;
            if (!direct)
                input.reach(tile, top, top + ring.rows);
            const char* x = direct ? f.input.first.data + tile * in.tile_bytes() + y * in.row_bytes() : memory;
            Prefetcher prefetcher;
            if (!direct)
                prefetch_view(prefetcher, f.input, tile, input.filled - geometry.padding_h, geometry.stride_h,
                              worker.last);
            const size_t next = tile * out.tile_bytes() + (y + 1) * out.row_bytes();
            if (y + 1 < out.height) {
                if (f.output.add)
                    prefetcher.add(f.output.add + next, out.row_bytes());
                if (!f.output.stream)
                    prefetcher.add(f.output.data + next, out.row_bytes());
            }
            prefetcher.start(long(tiles.count) * f.forward.blocks * f.forward.rows);
            const uint16_t* offsets = f.forward.offsets + f.forward.variant * size_t(top % ring.rows);
            for (int i = 0; i < tiles.count; i++) {
                const int column = tiles.begin(i);
                by_width<T, CallColumn>(tiles.begin(i + 1) - column,
                                        Column<T>{f.forward, offsets, x + size_t(column) * T::ring_line, f.output, tile,
                                                  y, column, 1, accumulators, sums.partial, prefetcher});
            }
            sums.row_done();
        }
    }
    sums.flush();
}

template <class T>
static void convolution_backward(const ConvolutionBackward& b, Worker& worker) {
    using V = typename T::V;
    if constexpr (T::tiles)
        if (b.weight_tiles.taps || b.transposed_tiles)
            return convolution_backward_tiles<T>(b, worker);
    const Geometry& geometry = b.geometry;
    const Shape &in = b.input.shape, &out = b.gradient.shape;
    const RingShape &xring = b.input_ring, &dring = b.gradient_ring;
    const bool weights = b.weight.begin, direct = T::ring_line == kLine && reads_in_place(b.input, xring, geometry);
    const int sh = geometry.stride_h, sw = geometry.stride_w;
    const int input_rows = b.transposed ? (in.height + sh - 1) / sh : 0, steps = larger(out.height, input_rows);
    const bool gradient_direct = T::ring_line == kLine && b.gradient.plain() && !b.gradient.store &&
                                 !worker.bias_sums && steps == out.height && dring.rows == 1 && dring.left == 0 &&
                                 dring.pitch == out.width;
    char* xmemory = direct || !weights ? nullptr : ring_memory(worker, kInputRing, xring, in.channels, in.width);
    char* dmemory = gradient_direct ? nullptr : ring_memory(worker, kGradientRing, dring, out.channels, out.width);
    V* accumulators =
        (V*)worker.scratch(worker.owner, kAccumulators, size_t(in.channels) * kTileLines * T::parts * sizeof(V));
    Sums<T> sums;
    sums.start(worker, kSums, in.channels);
    const Tiles tiles = Tiles::of(out.width, tile_lines<T>());
    long segments = weights ? long(tiles.count) * b.weight.blocks * b.weight.rows : 0;
    if (b.transposed)
        for (int i = 0; i < sh * sw; i++)
            segments += long(tiles.count) * b.transposed[i].blocks * b.transposed[i].rows;
    for (int tile = worker.first; tile < worker.last; tile++) {
        InputRing<T> input{b.input, xring, geometry.padding_h, xmemory, 0};
        int filled = b.gradient_first;
        for (int r = 0; r < steps; r++) {
            const int top = r * sh;
            if (weights && !direct && r < out.height)
                input.reach(tile, top, top + xring.rows);
            for (; !gradient_direct && filled <= r + b.gradient_last; filled++) {
                const int slot = (filled - b.gradient_first) % dring.rows;
                if (filled < 0 || filled >= out.height)
                    clear_row(dmemory, dring, out.channels, slot);
                else
                    load_gradient_row<T, T::ring_line != kLine>(
                        b.gradient, tile, filled, dmemory + (size_t(slot) * dring.pitch + dring.left) * T::ring_line,
                        dring.channel_bytes(), worker.bias_sums);
            }
            Prefetcher prefetcher;
            if (weights && !direct && r + 1 < out.height)
                prefetch_view(prefetcher, b.input, tile, input.filled - geometry.padding_h, sh, worker.last);
            if (!gradient_direct && filled < out.height)
                prefetch_gradient(prefetcher, b.gradient, tile, filled);
            if (b.transposed)
                prefetch_target(prefetcher, b.target, tile, (r + 1) * sh, sh);
            prefetcher.start(segments);
            const char* d =
                gradient_direct ? b.gradient.source[0] + tile * out.tile_bytes() + r * out.row_bytes() : dmemory;
            if (weights && r < out.height) {
                const char* x = direct ? b.input.first.data + tile * in.tile_bytes() + r * in.row_bytes() : xmemory;
                const size_t slot = gradient_direct ? 0 : size_t(r - b.gradient_first) % dring.rows;
                const char* row = d + (slot * dring.pitch + dring.left) * T::ring_line;
                const uint16_t* offsets = b.weight.offsets + b.weight.variant * size_t(top % xring.rows);
                for (int i = 0; i < tiles.count; i++) {
                    const int column = tiles.begin(i);
                    by_width<T, CallWeightColumn>(
                        tiles.begin(i + 1) - column,
                        WeightColumn<T>{b.weight, offsets, x + size_t(column) * T::ring_line,
                                        row + size_t(column) * T::ring_line, dring.channel_bytes(),
                                        (typename T::Scalar*)worker.weight_sums, prefetcher});
                }
            }
            if (r >= input_rows)
                continue;
            for (int parity = 0; parity < sh * sw; parity++) {
                const int y = top + parity / sw, first = parity % sw;
                if (y >= in.height || first >= in.width)
                    continue;
                const Segments& s = b.transposed[parity];
                const uint16_t* offsets = s.offsets + s.variant * size_t(r % dring.rows);
                const Tiles parity_tiles = Tiles::of((in.width - first + sw - 1) / sw, tile_lines<T>());
                for (int i = 0; i < parity_tiles.count; i++) {
                    const int column = parity_tiles.begin(i);
                    by_width<T, CallColumn>(parity_tiles.begin(i + 1) - column,
                                            Column<T>{s, offsets, d + size_t(column) * T::ring_line, b.target, tile, y,
                                                      column * sw + first, sw, accumulators, sums.partial, prefetcher});
                }
            }
            sums.row_done();
        }
    }
    sums.flush();
}

}  // namespace REGROW_VARIANT
}  // namespace regrow
