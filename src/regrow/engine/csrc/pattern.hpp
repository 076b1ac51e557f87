// Which weights of a layer are alive, and the orders in which the kernels walk them.
//
// Kept for the life of a pattern: for each alive weight 2 bytes, its position (channel * taps + tap) in its output row,
// in the canonical order of the values (row by row, ascending), and where the rows begin. Layers that are matrix
// products (1x1, no stride, no padding) also keep their transposed order, 4 bytes a weight, because a linear layer has
// too little work a weight to sort at every call. Everything else is written anew for each call, in one pass:
//
//   values, canonical   o0: [block 0 | block 1 | ...]  o1: [block 0 | block 1 | ...]  ...
//   kernel order        block 0: [o0 | o1 | o2 ...]  block 1: [o0 | o1 | o2 ...]  ...       offsets for each ring
//   position
//
// which costs some 10 nanoseconds a weight where the arithmetic costs 300 (batch 128 at 32x32).
#pragma once
#include <vector>

#include "tasks.hpp"

namespace regrow {

class Pattern {
  public:
    Pattern() = default;
    // Throws std::invalid_argument unless the indices are ascending and inside out * in * taps.
    Pattern(int out, int in, int taps, const int64_t* indices, size_t count, bool keep_transposed);
    static Pattern full(int out, int in, int taps);

    size_t count() const { return is_full_ ? size_t(out) * row_length() : position_.size(); }
    size_t row_length() const { return size_t(in) * taps; }
    size_t memory() const;  // bytes of index structures
    void indices(int64_t* to) const;
    const uint16_t* row(int o) const { return is_full_ ? position_.data() : position_.data() + start_[o]; }
    const uint32_t* starts() const { return start_.data(); }
    size_t row_start(int o) const { return is_full_ ? size_t(o) * row_length() : start_[o]; }
    size_t row_count(int o) const { return is_full_ ? row_length() : start_[o + 1] - start_[o]; }

    int out = 0, in = 0, taps = 0;
    int shared = 1;  // 4: every four neighbouring rows have the same positions
    bool all = false;

    // transposed order of a matrix product: rows are inputs; blocks of outputs, each below 65536 weights
    int transposed_blocks = 0;
    std::vector<uint32_t> transposed_begin;                      // [block * in + input], one more at the end
    std::vector<uint16_t> transposed_output, transposed_source;  // source: canonical place minus the block's first

  private:
    void transpose();
    bool is_full_ = false;
    std::vector<uint16_t> position_;
    std::vector<uint32_t> start_;
};

// Memory that one call's segments point into.
struct Packed {
    std::vector<uint32_t> begin, cursor;
    std::vector<uint16_t> offsets;
    std::vector<double> weights;  // raw storage, aligned for any scalar
    Segments segments{};
};

enum class WeightKind { Float, Double, BFloat16 };

// Where tap `t` of a channel is read, in lines behind the channel's start, for every ring position: [position][tap].
struct TapTable {
    int positions = 1;
    std::vector<uint32_t> lines;
};

// Largest power of two of channels whose lines of one tile fit in L1, fewer blocks where rows are short.
int channels_per_block(int channels, size_t bytes_per_channel, size_t weights_per_row, size_t channel_lines);

// Forward order. `values` null: positions only (weight gradients).
void pack_forward(const Pattern&, const RingShape&, const TapTable&, int block, const void* values, WeightKind,
                  Packed&);
// A matrix product in one block needs no packing at all: the canonical order is the kernel's.
Segments product_segments(const Pattern&, const RingShape&, const void* values, WeightKind, Packed&);
// The gradient of weights in kernel order, summed over threads, to canonical order.
void unpack_gradient(const Pattern&, const Segments&, const void* const* sums, int threads, bool is_double, void* to);
// Transposed order for each parity class of the stride; class_of[tap], one table of lines for all classes.
void pack_transposed(const Pattern&, const RingShape&, const TapTable&, const std::vector<int>& class_of, int classes,
                     int block, const void* values, WeightKind, Packed&, std::vector<Segments>&);
void pack_transposed_product(const Pattern&, const RingShape&, const void* values, WeightKind, Packed&,
                             std::vector<Segments>&);

// Dense bf16 tiles of a layer; forward: rows are outputs; transposed: rows are inputs, for each class of taps.
struct PackedTiles {
    std::vector<uint16_t> data;
    std::vector<uint32_t> lines;
    std::vector<TileWeights> weights;  // one for each class
};
// `values` null: where the taps read, and no weights
void pack_tiles(const Pattern&, const TapTable&, const float* values, PackedTiles&);
void pack_transposed_tiles(const Pattern&, const TapTable&, const std::vector<int>& class_of, int classes,
                           const float* values, PackedTiles&);
size_t tile_count(const Pattern&);  // numbers in the tiles
// The gradient of weights in tiles ([row block][column block][tap][2 of inputs][2 of outputs][16][16]), summed over
// threads, to canonical order.
void unpack_tile_gradient(const Pattern&, const void* const* sums, int threads, float* to);

}  // namespace regrow
