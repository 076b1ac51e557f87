// Convolutions on AMX tiles (Intel, bf16): weights as dense blocks of 32 x 32, dead ones as zeros.
//
// Storage, optimizer and gradients stay sparse; only the arithmetic of these layers is dense. From a density of some
// percent on that is faster all the same: a tile instruction multiplies 16 x 32 by 32 x 16 numbers in 16 cycles, 3.8
// TFLOP/s at 3.7 GHz, where alive weights one by one reach some 150 GFLOP/s.
//
//   forward, input's gradient   C[16 outputs][16 images]  += A[16 outputs][32 inputs] B[32 inputs][16 images]
//     for each column, 32 outputs, 32 inputs, tap         A: packed weights, B: a column of the ring of pairs
//   weights' gradient           C[16 inputs][16 outputs]  += A[16 inputs][32 images]  B[32 images][16 outputs]
//     for each 32 outputs, 32 inputs, tap, column         A: a column of the ring of lines, B: gradients, transposed
//
// A column of 32 channels is two tiles of 16 lines (and a line more, so that columns differ in their sets of L1):
//
//   ring of pairs     [16 pairs of channels] even images | [16 pairs of channels] odd images      a lane: both channels
//   ring of lines     [16 channels]                      | [16 channels]                          a lane: two images
//   transposed        [16 pairs of images]               | [16 pairs of images]                   a lane: two images
//
// Two tiles of A times two of B share their loads: four loads of 8 cycles hide behind four products. The 18 KB of a
// block's nine taps and three neighbouring columns of the ring (18 KB) stay in L1; sums of a tile of columns go through
// L1 and L2 once for every 32 inputs. Measured alone: 3.1, 2.7, 2.5 TFLOP/s with 32, 64, 128 channels.
#pragma once
#include "columns.hpp"

namespace regrow {
namespace REGROW_VARIANT {

template <class T>
static void convolution_forward_tiles(const ConvolutionForward&, Worker&);
template <class T>
static void convolution_backward_tiles(const ConvolutionBackward&, Worker&);

#if defined(__AMX_BF16__)
constexpr int kTileBytes = 1024, kColumnBytes = 2 * kTileBytes + kLine;
constexpr int kSumsRow = 2 * kTileLines * kLine + kLine;  // bytes of one output's sums in a tile of columns
constexpr int kColumns = 8;                               // at a time in the weights' gradient

struct TileUnit {  // tiles of 16 rows of 64 bytes, for as long as it lives
    TileUnit() {
        struct alignas(64) {
            uint8_t palette = 1, first = 0, reserved[14] = {};
            uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } config;
        asm volatile("" ::"m"(config));
        _tile_loadconfig(&config);
    }
    ~TileUnit() { _tile_release(); }
};
// The intrinsics do not say that they read and write memory.
REGROW_INLINE void memory_barrier() { asm volatile("" ::: "memory"); }

REGROW_INLINE void four_products() {  // tiles 0 to 3 += (4, 5) x (6, 7)
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

// A row of up to 16 channels as it is stored; those that are missing are zero.
struct Group {
    char* data;
    int width;
    size_t channel_bytes;
    Group(Worker& worker, int row_width, int slot) : width(row_width), channel_bytes(size_t(row_width | 1) * kLine) {
        data = worker.scratch(worker.owner, slot, 16 * channel_bytes);
    }
    Bits line(int c, int x) const { return *(const Bits*)(data + c * channel_bytes + size_t(x) * kLine); }
    template <class T>
    void load(const View& view, int tile, int y, int first) const {
        const int count = start(view.shape.channels - first);
        load_row<T>(view, tile, y, {data, channel_bytes, 1, width, 0}, first, first + count);
    }
    template <class T>
    void load(const GradientView& g, int tile, int y, int first, double* bias) const {
        const int count = start(g.shape.channels - first);
        load_gradient_row<T>(g, tile, y, data, channel_bytes, bias, first, first + count);
    }

  private:
    int start(int channels) const {
        const int count = smaller(16, channels);
        memset(data + count * channel_bytes, 0, (16 - count) * channel_bytes);
        return count;
    }
};

struct TileRing {
    const RingShape& shape;
    int channels, blocks;
    char* data;
    TileRing(Worker& worker, int slot, const RingShape& s, int channel_count, int width)
        : shape(s), channels(channel_count), blocks((channel_count + 31) / 32) {
        data = worker.scratch(worker.owner, slot, blocks * block_bytes());
        const bool gaps = shape.phases > 1 || channels % 32 - 1u < 16;  // else only columns beside the rows stay empty
        if (gaps)
            memset(data, 0, blocks * block_bytes());
        for (int i = 0; !gaps && i < blocks * shape.rows; i++) {
            char* at = data + size_t(i) * shape.pitch * kColumnBytes;
            memset(at, 0, size_t(shape.left) * kColumnBytes);
            memset(at + size_t(shape.left + width) * kColumnBytes, 0,
                   size_t(shape.pitch - shape.left - width) * kColumnBytes);
        }
    }
    size_t block_bytes() const { return size_t(shape.rows) * shape.pitch * kColumnBytes; }
    char* row(int block, int slot) const {
        return data + block * block_bytes() + size_t(slot) * shape.pitch * kColumnBytes;
    }
    void clear(int slot) const {
        for (int block = 0; block < blocks; block++)
            memset(row(block, slot), 0, size_t(shape.pitch) * kColumnBytes);
    }
    // Column x of a group of 16 channels.
    char* column(int group, int slot, int x) const {
        const int at = x + shape.left,
                  place = shape.phases == 1 ? at : at % shape.phases * shape.phase_pitch + at / shape.phases;
        return row(group / 2, slot) + size_t(place) * kColumnBytes;
    }
    void put_lines(int group, int slot, const Group& from) const {
        for (int x = 0; x < from.width; x++) {
            char* to = column(group, slot, x) + group % 2 * kTileBytes;
            for (int c = 0; c < 16; c++)
                *(Bits*)(to + c * kLine) = from.line(c, x);
        }
    }
    void put_pairs(int group, int slot, const Group& from) const {
        for (int x = 0; x < from.width; x++) {
            char* to = column(group, slot, x) + group % 2 * 8 * kLine;
            for (int c = 0; c < 16; c += 2, to += kLine) {
                const Bits a = from.line(c, x), b = from.line(c + 1, x);
                *(Bits*)to = (a & 0xffffu) | (b << 16);
                *(Bits*)(to + kTileBytes) = (a >> 16) | (b & 0xffff0000u);
            }
        }
    }
};

// 16 lines `stride` bytes apart, as 16 x 16 pairs of images, to a tile
REGROW_INLINE void transpose(const char* from, size_t stride, char* to) {
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        a[i] = _mm512_load_si512(from + i * stride);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
            a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
        }
    // a[4 g + k]: rows 4 g .. 4 g + 3 of columns k, k + 4, k + 8, k + 12
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        const __m512i even = _mm512_shuffle_i32x4(a[k], a[4 + k], 0x88), odd = _mm512_shuffle_i32x4(a[k], a[4 + k], 0xdd);
        const __m512i even2 = _mm512_shuffle_i32x4(a[8 + k], a[12 + k], 0x88),
                      odd2 = _mm512_shuffle_i32x4(a[8 + k], a[12 + k], 0xdd);
        _mm512_store_si512(to + k * kLine, _mm512_shuffle_i32x4(even, even2, 0x88));
        _mm512_store_si512(to + (4 + k) * kLine, _mm512_shuffle_i32x4(odd, odd2, 0x88));
        _mm512_store_si512(to + (8 + k) * kLine, _mm512_shuffle_i32x4(even, even2, 0xdd));
        _mm512_store_si512(to + (12 + k) * kLine, _mm512_shuffle_i32x4(odd, odd2, 0xdd));
    }
}

struct TileColumn {  // one tile of columns of one row, all outputs
    const TileWeights& weights;
    const uint32_t* lines;  // of the taps
    const char* x;          // the first column of the ring's block 0
    size_t block_bytes;
    const Target& target;
    int tile, y, column, step;
    char* accumulators;
    B16::V* sums;
    Prefetcher& prefetcher;
};

template <class T, int C>
static void tile_column(const TileColumn& a) {
    const TileWeights& w = a.weights;
    const char* block = (const char*)w.data;
    for (int o = 0; o < w.outputs; o++) {
        for (int i = 0; i < w.inputs; i++, block += size_t(w.taps) * 2 * kTileBytes) {
            char* sums = a.accumulators;
            for (int c = 0; c < C; c++, sums += 2 * kLine) {
                const char *first = block, *x = a.x + i * a.block_bytes + size_t(c) * kColumnBytes;
                memory_barrier();
                if (i == 0) {
                    _tile_zero(0);
                    _tile_zero(1);
                    _tile_zero(2);
                    _tile_zero(3);
                } else {
                    _tile_loadd(0, sums, kSumsRow);
                    _tile_loadd(1, sums + kLine, kSumsRow);
                    _tile_loadd(2, sums + 16 * kSumsRow, kSumsRow);
                    _tile_loadd(3, sums + 16 * kSumsRow + kLine, kSumsRow);
                }
                for (int t = 0; t < w.taps; t++, first += 2 * kTileBytes) {
                    const char* column = x + size_t(a.lines[t]) * kColumnBytes;
                    _tile_loadd(4, first, kLine);
                    _tile_loadd(6, column, kLine);
                    _tile_loadd(7, column + kTileBytes, kLine);
                    _tile_loadd(5, first + kTileBytes, kLine);
                    four_products();
                    a.prefetcher.step();
                }
                _tile_stored(0, sums, kSumsRow);
                _tile_stored(1, sums + kLine, kSumsRow);
                _tile_stored(2, sums + 16 * kSumsRow, kSumsRow);
                _tile_stored(3, sums + 16 * kSumsRow + kLine, kSumsRow);
                memory_barrier();
            }
        }
        for (int r = 0; r < 32 && 32 * o + r < a.target.shape.channels; r++)
            finish_tile<T, C>(a.target, a.tile, a.y, 32 * o + r, a.column, a.step,
                              (typename T::V*)(a.accumulators + r * kSumsRow), a.sums + (32 * o + r) * kStatistics);
    }
}
template <class T, int C>
struct CallTileColumn {
    static void run(const TileColumn& a) { tile_column<T, C>(a); }
};

// A row of a target, its columns first, first + step, ...
template <class T>
static void tile_row(const TileWeights& weights, int position, const TileRing& ring, const Target& target, int tile, int y,
                     int first, int step, char* accumulators, typename T::V* sums, Prefetcher& prefetcher) {
    const Tiles tiles = Tiles::of((target.shape.width - first + step - 1) / step, kTileLines);
    for (int i = 0; i < tiles.count; i++) {
        const int column = tiles.begin(i);
        by_width<T, CallTileColumn, kTileLines>(
            tiles.begin(i + 1) - column,
            TileColumn{weights, weights.lines + size_t(position) * weights.taps, ring.data + size_t(column) * kColumnBytes,
                       ring.block_bytes(), target, tile, y, column * step + first, step, accumulators, sums, prefetcher});
    }
}

template <class T>
static void convolution_forward_tiles(const ConvolutionForward& f, Worker& worker) {
    const TileUnit unit;
    const Geometry& geometry = f.geometry;
    const Shape &in = f.input.shape, &out = f.output.shape;
    const TileRing ring(worker, kInputRing, f.ring, in.channels, in.width);
    const Group group(worker, in.width, kRow);
    char* accumulators = worker.scratch(worker.owner, kAccumulators, 32 * kSumsRow);
    Sums<T> sums;
    sums.start(worker, kSums, out.channels);
    for (int tile = worker.first; tile < worker.last; tile++) {
        int filled = 0;
        for (int y = 0; y < out.height; y++) {
            const int top = y * geometry.stride_h;
            for (filled = larger(filled, top); filled < top + f.ring.rows; filled++) {
                const int row = filled - geometry.padding_h, slot = filled % f.ring.rows;
                if (row < 0 || row >= in.height) {
                    ring.clear(slot);
                    continue;
                }
                for (int c = 0; c < in.channels; c += 16) {
                    group.load<T>(f.input, tile, row, c);
                    ring.put_pairs(c / 16, slot, group);
                }
            }
            Prefetcher prefetcher;
            prefetch_view(prefetcher, f.input, tile, filled - geometry.padding_h, geometry.stride_h, worker.last);
            if (y + 1 < out.height) {
                const size_t next = tile * out.tile_bytes() + (y + 1) * out.row_bytes();
                if (f.output.add)
                    prefetcher.add(f.output.add + next, out.row_bytes());
                if (!f.output.stream)
                    prefetcher.add(f.output.data + next, out.row_bytes());
            }
            prefetcher.start(long(out.width) * f.tiles.outputs * f.tiles.inputs * f.tiles.taps);
            tile_row<T>(f.tiles, top % f.ring.rows, ring, f.output, tile, y, 0, 1, accumulators, sums.partial, prefetcher);
            sums.row_done();
        }
    }
    sums.flush();
}

// sums[output block][input block][tap][two halves of inputs][two halves of outputs][16][16] += one row's part
REGROW_INLINE void weight_row(const TileWeights& w, const uint32_t* lines, const TileRing& x, const char* gradient,
                              int width, char* sums, Prefetcher& prefetcher) {
    const size_t gradient_block = size_t(width) * kColumnBytes;
    for (int begin = 0; begin < width; begin += kColumns) {
        const int end = smaller(width, begin + kColumns);
        char* to = sums;
        for (int o = 0; o < w.outputs; o++)
            for (int i = 0; i < w.inputs; i++)
                for (int t = 0; t < w.taps; t++, to += 4 * kTileBytes) {
                    const char* a = x.row(i, 0) + (size_t(lines[t]) + begin) * kColumnBytes;
                    const char* b = gradient + o * gradient_block + size_t(begin) * kColumnBytes;
                    memory_barrier();
                    _tile_loadd(0, to, kLine);
                    _tile_loadd(1, to + kTileBytes, kLine);
                    _tile_loadd(2, to + 2 * kTileBytes, kLine);
                    _tile_loadd(3, to + 3 * kTileBytes, kLine);
                    for (int c = begin; c < end; c++, a += kColumnBytes, b += kColumnBytes) {
                        _tile_loadd(4, a, kLine);
                        _tile_loadd(6, b, kLine);
                        _tile_loadd(7, b + kTileBytes, kLine);
                        _tile_loadd(5, a + kTileBytes, kLine);
                        four_products();
                        prefetcher.step();
                    }
                    _tile_stored(0, to, kLine);
                    _tile_stored(1, to + kTileBytes, kLine);
                    _tile_stored(2, to + 2 * kTileBytes, kLine);
                    _tile_stored(3, to + 3 * kTileBytes, kLine);
                    memory_barrier();
                }
    }
}

template <class T>
static void convolution_backward_tiles(const ConvolutionBackward& b, Worker& worker) {
    const TileUnit unit;
    const Geometry& geometry = b.geometry;
    const Shape &in = b.input.shape, &out = b.gradient.shape;
    const RingShape &xring = b.input_ring, &dring = b.gradient_ring;
    const int sh = geometry.stride_h, sw = geometry.stride_w;
    const bool weights = b.weight_tiles.taps, target = b.transposed_tiles;
    const int input_rows = target ? (in.height + sh - 1) / sh : 0, steps = larger(out.height, input_rows);
    const TileRing x(worker, kInputRing, xring, weights ? in.channels : 0, in.width);
    const TileRing pairs(worker, kGradientRing, dring, target ? out.channels : 0, out.width);
    const size_t block_bytes = size_t(out.width) * kColumnBytes;
    const Group group(worker, out.width, kRow), x_group(worker, in.width, kInputRow);
    char* transposed = worker.scratch(worker.owner, kTransposed, (out.channels + 31) / 32 * block_bytes);
    char* accumulators = worker.scratch(worker.owner, kAccumulators, 32 * kSumsRow);
    Sums<T> sums;
    sums.start(worker, kSums, in.channels);
    long segments = weights ? long(out.width) * b.weight_tiles.outputs * b.weight_tiles.inputs * b.weight_tiles.taps : 0;
    for (int i = 0; target && i < sh * sw; i++)
        segments += long(in.width / sw) * b.transposed_tiles[i].outputs * b.transposed_tiles[i].inputs *
                    b.transposed_tiles[i].taps;
    for (int tile = worker.first; tile < worker.last; tile++) {
        int filled = b.gradient_first, x_filled = 0;
        for (int r = 0; r < steps; r++) {
            const int next = r + b.gradient_last + 1;  // row of the gradient
            Prefetcher prefetcher;
            if (weights && next < out.height)
                prefetch_view(prefetcher, b.input, tile, (next - 1) * sh + xring.rows - geometry.padding_h, sh, worker.last);
            if (next < out.height)
                prefetch_gradient(prefetcher, b.gradient, tile, next);
            if (target)
                prefetch_target(prefetcher, b.target, tile, (r + 1) * sh, sh);
            prefetcher.start(segments);
            for (; filled < next; filled++) {
                const int slot = (filled - b.gradient_first) % dring.rows;
                if (filled < 0 || filled >= out.height) {
                    pairs.clear(slot);
                    continue;
                }
                for (int c = 0; c < out.channels; c += 16) {
                    group.load<T>(b.gradient, tile, filled, c, worker.bias_sums);
                    if (target)
                        pairs.put_pairs(c / 16, slot, group);
                    char* to = transposed + c / 32 * block_bytes + c % 32 / 16 * kTileBytes;
                    for (int column = 0; weights && column < out.width; column++)
                        transpose(group.data + size_t(column) * kLine, group.channel_bytes, to + size_t(column) * kColumnBytes);
                }
                if (!weights)
                    continue;
                const int top = filled * sh;
                for (x_filled = larger(x_filled, top); x_filled < top + xring.rows; x_filled++) {
                    const int row = x_filled - geometry.padding_h, place = x_filled % xring.rows;
                    if (row < 0 || row >= in.height) {
                        x.clear(place);
                        continue;
                    }
                    for (int c = 0; c < in.channels; c += 16) {
                        x_group.load<T>(b.input, tile, row, c);
                        x.put_lines(c / 16, place, x_group);
                    }
                }
                weight_row(b.weight_tiles, b.weight_tiles.lines + size_t(top % xring.rows) * b.weight_tiles.taps, x,
                           transposed, out.width, (char*)worker.weight_sums, prefetcher);
            }
            if (r >= input_rows)
                continue;
            for (int parity = 0; parity < sh * sw; parity++) {
                const int y = r * sh + parity / sw, first = parity % sw;
                if (y < in.height && first < in.width)
                    tile_row<T>(b.transposed_tiles[parity], r % dring.rows, pairs, b.target, tile, y, first, sw,
                                accumulators, sums.partial, prefetcher);
            }
            sums.row_done();
        }
    }
    sums.flush();
}
#endif

}  // namespace REGROW_VARIANT
}  // namespace regrow
