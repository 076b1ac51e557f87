// What the plan hands to the kernels: plain records of pointers and sizes, shared by all compiled variants.
//
// A stored activation is an array of 64-byte lines; a line holds the same element of 16 (fp32), 32 (bf16) or 8 (fp64)
// images, so that every kernel is a loop over lines and never needs a shuffle:
//
//        [tile][height][channel][width][lane]          lane: image = tile * lanes + lane
//
// An image of one pixel (a linear layer) would give tiles one line wide. There `width` counts image tiles instead:
// up to eight tiles of images stand side by side as the columns of one row, and a linear layer is a 1x1 convolution.
//
// Invariant: lanes beyond the batch are zero in every stored tensor. Whoever adds a constant multiplies it by `mask`.
#pragma once
#include <cstddef>
#include <cstdint>

namespace regrow {

constexpr int kLine = 64;       // bytes
constexpr int kTileLines = 8;   // widest output tile
constexpr int kStatistics = 3;  // vectors of partial sums a channel: sum, first product, second product

enum class Dtype : int { Float32 = 0, BFloat16 = 1, Float64 = 2 };

struct Shape {
    int tiles, height, channels, width;
    const char* mask;  // `width` lines of ones and zeros for the last tile; null when the batch fills it
    size_t row_bytes() const { return size_t(channels) * width * kLine; }
    size_t tile_bytes() const { return height * row_bytes(); }
    size_t bytes() const { return tiles * tile_bytes(); }
};

// scale[c] * data + shift[c]; without scale the data themselves
struct Term {
    const char* data;
    const void* scale;
    const void* shift;
};

// A value that is never stored: dropout(relu(first + second)). It is computed whenever a row of it is read.
struct View {
    Shape shape;
    Term first, second;  // second.data may be null
    bool relu;
    uint32_t keep;      // dropout: keep an element when its 32-bit hash is below `keep`; 0: no dropout
    double keep_scale;  // 1 / (1 - probability)
    uint64_t seed;
    bool plain() const { return !first.scale && !second.data && !relu && !keep; }
};

// Gradient of a stored tensor: factor[0] * source[0] + factor[1] * source[1] + q * value + r  (q, r: batch norm's)
struct GradientView {
    Shape shape;
    const char* source[2];
    const void* factor[2];
    const char* value;
    const void* q;
    const void* r;
    char* store;  // where the sum is kept as well, when somebody else needs it; else null
    bool stream;
    bool plain() const { return !source[1] && !factor[0] && !value; }
};

// Where a step puts a row of values or gradients, and what it does on the way.
struct Target {
    Shape shape;
    char* data;
    const char* add;   // residual or earlier contribution, same shape; null: none
    const void* bias;  // per channel; null: none
    const View* gate;  // gradient of this view's argument: dropout and ReLU masks, batch norm's sums
    bool statistics;
    bool stream;  // past the caches
};

struct Geometry {
    int kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
};

// Rows of one tensor kept hot: [channel][slot][pitch] lines, padded row r in slot r % rows, zero halo at both ends.
// With a stride the columns lie phase by phase, so that a tile always reads neighbouring lines.
struct RingShape {
    int rows, pitch, phases, phase_pitch, left;
    int line;  // bytes: kLine, or 2 * kLine where bf16 is widened to fp32 on the way in
    size_t channel_bytes() const { return size_t(rows) * pitch * line; }
};

// Alive weights in the order in which a kernel walks them. Segment (block q, row j) is
// begin[q * block_stride + j * row_stride] up to the entry after it.
struct Segments {
    const uint32_t* begin;
    int blocks, rows, block_stride, row_stride;
    int shared;               // 1, or 4: four neighbouring rows have the same positions, weights lie [entry][4]
    const uint16_t* offsets;  // entry k reads the input at offsets[k] * scale bytes behind the block's start
    size_t variant;           // entries between the offsets for two neighbouring ring positions
    size_t scale, block_bytes;
    const void* weights;  // float, double or bf16 bits
    size_t count;         // weights
};

// The weights as dense bf16 tiles of 16 rows x 32 columns, dead ones as zeros; rows in blocks of 32, two tiles:
// [row block][column block][tap][2][16][32].
struct TileWeights {
    const void* data;     // null: the kernels walk alive weights one by one
    int outputs, inputs;  // blocks of rows and of columns
    int taps;
    const uint32_t* lines;  // where each tap reads, for every ring position: [position][tap]
};

struct ConvolutionForward {
    Geometry geometry;
    View input;
    RingShape ring;
    Segments forward;
    TileWeights tiles;  // in place of `forward`
    Target output;
};

struct ConvolutionBackward {
    Geometry geometry;
    View input;
    RingShape input_ring, gradient_ring;
    GradientView gradient;
    int gradient_first, gradient_last;  // rows of the output around input row t * stride that the kernels touch
    Segments weight;                    // positions whose gradient is wanted; begin null: none
    const Segments* transposed;         // stride_h * stride_w classes; null: no gradient for the input
    TileWeights weight_tiles;             // in place of `weight`, without data: the sums are tiles too; no taps: none
    const TileWeights* transposed_tiles;  // in place of `transposed`
    Target target;
};

struct Pool {
    bool maximum;
    int kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;
    View input;
    Target output;          // forward
    GradientView gradient;  // backward
    Target target;
};

// One thread's share: image tiles [first, last), its scratch memory and its private sums.
struct Worker {
    int first, last;
    char* (*scratch)(void* owner, int slot, size_t bytes);  // zeroed when it grows
    void* owner;
    double* statistics;  // [channels][kStatistics], added to
    void* weight_sums;   // grad-weight: float or double [entries], or tiles of float; added to
    double* bias_sums;   // grad-bias: [channels], added to
};

// Dense torch memory on the other side of a border.
struct Border {
    void* data;  // [batch][channels][height][width], contiguous; fp64 for fp64, else fp32
    int batch, channels, height, width;
    bool flat;  // one pixel: the stored tensor holds image tiles side by side
};

// ---- few images (pixels.hpp): [channel][image][rows][pitch] elements, pixels in the lanes

constexpr int kWidestPixels = 1024;  // columns of an image

struct PixelShape {
    int images, channels, height, width;
    int rows, pitch;  // of an image; those beyond height and width hold no pixels
    size_t plane;     // elements from channel to channel
    size_t pixels() const { return (size_t(images - 1) * rows + height - 1) * pitch + width; }  // up to the last
};

struct PixelView {
    PixelShape shape;
    Term first, second;  // second.data may be null
    bool relu;
    const void* mask;  // all ones at pixels, zeros elsewhere, where the padded planes have the same pitch; else null
};

// A view with its padding; phase (y % stride_h, x % stride_w) of the padded image has plane slot[...] of its own.
struct PixelPadding {
    void* data;
    int stride_h, stride_w, padding_h, padding_w;
    int rows, pitch, read_h, read_w;  // read: rows and columns of a phase that taps reach
    size_t plane, channel;            // elements
    const int* slot;                  // -1: nobody reads the phase
    // of a row: of each phase of columns its first column, where that goes, and how many are read
    const int *begin, *first, *count;
    double outside;                   // the padding's value
};

struct PixelConvolution {
    const void* x;
    size_t channel;          // elements between input channels
    const uint32_t* offset;  // of each position in a row of the weight, in elements; null: position * channel
    const uint32_t* begin;   // of each output row in position and values
    const uint16_t* position;
    const void* values;
    int shared;        // 1, or 4: four neighbouring rows have the same positions
    const void* bias;  // null: none
    const void* add;   // shaped as y; null: none
    void* y;
    size_t plane, count;  // elements from channel to channel, and those to compute
};

struct PixelPool {
    const void* x;
    int rows, pitch;
    size_t channel;
    const uint32_t* offset;  // of each tap
    int taps;
    bool maximum;
    double share;
    void* y;
    PixelShape shape;  // of y
};

// Each works on channels (rows of `shared` outputs) first .. last - 1.
struct PixelKernels {
    void (*fill)(const PixelView&, const PixelPadding&, int first, int last);
    void (*convolve)(const PixelConvolution&, int first, int last);
    void (*pool)(const PixelPool&, int first, int last);
    void (*pack)(const PixelView&, bool image_last, void* data, int first, int last);
    void (*unpack)(const void* data, const PixelShape&, void* tensor, int first, int last);
};

// The kernels of one compiled variant for one storage type.
struct Kernels {
    void (*convolution_forward)(const ConvolutionForward&, Worker&);
    void (*convolution_backward)(const ConvolutionBackward&, Worker&);
    void (*materialise)(const View&, const Target&, Worker&);
    void (*gradient)(const GradientView&, const Target&, Worker&);
    void (*pool_forward)(const Pool&, Worker&);
    void (*pool_backward)(const Pool&, Worker&);
    void (*flatten_forward)(const View&, const Target&, Worker&);
    void (*flatten_backward)(const GradientView&, const Target&, Worker&);
    void (*import_rows)(const Border&, const Target&, Worker&);
    void (*export_rows)(const Border&, const View*, const GradientView*, Worker&);
    PixelKernels pixels;  // of bf16: those of fp32
};

struct Variant {
    const char* name;
    bool bfloat16_weights;  // bf16 kernels take bf16 weights (vdpbf16ps); else fp32 ones
    bool tiles;             // bf16 kernels take dense tiles as well (AMX)
    Kernels float32, bfloat16, float64;
};

}  // namespace regrow
