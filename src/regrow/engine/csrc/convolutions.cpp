// The two steps of a convolution: packs its weights in the orders of the kernels, and gathers what threads summed apart.
#include <algorithm>
#include <cstring>

#include "context.hpp"

namespace regrow {

// Dense tiles (amx.hpp) are faster than alive weights one by one from a density of 5 to 6 % on: forward and backward of a
// 3 x 3 layer of 32, 64 and 128 channels take 12.3, 6.9, 5.5 ms on tiles, and 12.2, 7.5, 5.8 ms at 5 %, with batch norm.
constexpr size_t kTileDensity = 16;  // one alive weight in so many
bool Plan::takes_tiles(const Pattern& pattern, const TensorRecord& in) const {
    return dtype_ == Dtype::BFloat16 && variant_->tiles && !in.flat &&
           kTileDensity * pattern.count() >= tile_count(pattern);
}

void Plan::run_convolution(Context& context, const Step& step) {
    const Layer& layer = layers_[step.layer];
    View gate{};
    ConvolutionForward f{};
    f.geometry = layer.geometry;
    f.input = context.view(step.view);
    f.output = context.target(step.target, gate);
    if (step.bias >= 0)
        f.output.bias = (const void*)context.call.biases[step.bias];
    const ConvolutionShapes shapes =
        convolution_shapes(layer, layer.pattern.count(), ring_line(), f.input.shape, f.output.shape);
    f.ring = shapes.input_ring;
    const void* values = (const void*)context.call.values[step.layer];
    ForwardPack& pack = context.packs ? context.packs[step.layer] : packed_forward_;
    if (!context.packs || pack.pitch != f.ring.pitch) {
        pack.pitch = f.ring.pitch;
        pack.tiles.weights.clear();
        if (takes_tiles(layer.pattern, tensors_[views_[step.view].tensor[0]]))
            pack_tiles(layer.pattern, shapes.input_taps, (const float*)values, pack.tiles);
        else if (shapes.product && shapes.input_block == layer.in && layer.pattern.shared == 1)
            pack.rows.segments = product_segments(layer.pattern, f.ring, values, weight_kind(), pack.rows);
        else
            pack_forward(layer.pattern, f.ring, shapes.input_taps, shapes.input_block, values, weight_kind(), pack.rows);
    }
    if (pack.tiles.weights.empty())
        f.forward = pack.rows.segments;
    else
        f.tiles = pack.tiles.weights[0];
    workers(context, step, f.output.shape.tiles, layer.out, [&](Worker& w) { kernels_->convolution_forward(f, w); });
}

void Plan::run_convolution_backward(Context& context, const Step& step) {
    const Layer& layer = layers_[step.layer];
    const Call& call = context.call;
    View gate{};
    ConvolutionBackward b{};
    b.geometry = layer.geometry;
    b.input = context.view(step.view);
    b.gradient = context.gradient(step.gradient);
    const ConvolutionShapes shapes =
        convolution_shapes(layer, layer.pattern.count(), ring_line(), b.input.shape, b.gradient.shape);
    b.input_ring = shapes.input_ring, b.gradient_ring = shapes.gradient_ring;
    b.gradient_first = shapes.gradient_first, b.gradient_last = shapes.gradient_last;

    void *sparse = (void*)call.value_gradients[step.layer], *dense = (void*)call.dense_gradients[step.layer];
    const Pattern full = dense ? Pattern::full(layer.out, layer.in, layer.pattern.taps) : Pattern();
    const Pattern& wanted = dense ? full : layer.pattern;
    bool canonical = false;
    const bool as_tiles = takes_tiles(wanted, tensors_[views_[step.view].tensor[0]]);
    if ((dense || sparse) && as_tiles) {
        pack_tiles(layer.pattern, shapes.input_taps, nullptr, packed_tiles_);
        b.weight_tiles = packed_tiles_.weights[0];
    } else if (dense || sparse) {
        canonical = shapes.product && shapes.input_block == layer.in && wanted.shared == 1 && !dense;
        if (canonical) {
            b.weight = product_segments(wanted, b.input_ring, nullptr, weight_kind(), packed_weight_);
        } else {
            const int block =
                dense ? convolution_shapes(layer, wanted.count(), ring_line(), b.input.shape, b.gradient.shape)
                            .input_block
                      : shapes.input_block;
            pack_forward(wanted, b.input_ring, shapes.input_taps, block, nullptr, weight_kind(), packed_weight_);
            b.weight = packed_weight_.segments;
        }
    }
    const void* values = (const void*)call.values[step.layer];
    std::vector<Segments> transposed;
    if (step.target >= 0) {
        b.target = context.target(step.target, gate);
        if (layer.geometry.stride_w > 1)
            b.target.stream = false;
        const int classes = layer.geometry.stride_h * layer.geometry.stride_w;
        if (as_tiles) {
            pack_transposed_tiles(layer.pattern, shapes.gradient_taps, shapes.class_of, classes, (const float*)values,
                                  packed_transposed_tiles_);
            b.transposed_tiles = packed_transposed_tiles_.weights.data();
        } else if (layer.pattern.transposed_blocks)
            pack_transposed_product(layer.pattern, b.gradient_ring, values, weight_kind(), packed_transposed_,
                                    transposed);
        else
            pack_transposed(layer.pattern, b.gradient_ring, shapes.gradient_taps, shapes.class_of,
                            classes, shapes.gradient_block, values,
                            weight_kind(), packed_transposed_, transposed);
        b.transposed = as_tiles ? nullptr : transposed.data();
    }
    void* bias = step.bias >= 0 ? (void*)call.bias_gradients[step.bias] : nullptr;
    const size_t scalar = is_double() ? 8 : 4;
    const size_t bytes = (as_tiles ? tile_count(layer.pattern) : wanted.count() + 16) * scalar;
    const int tiles = b.gradient.shape.tiles, threads = std::max(1, std::min(context.run.threads, tiles));
    const bool in_place = canonical && threads == 1;
    if (in_place)
        memset(sparse, 0, wanted.count() * scalar);
    std::vector<const void*> sums(threads);
    std::vector<const double*> bias_sums(threads);
    workers(context, step, tiles, layer.in, [&](Worker& w) {
        ThreadMemory& memory = *(ThreadMemory*)w.owner;
        if (b.weight.begin || b.weight_tiles.taps) {
            w.weight_sums = in_place ? sparse : memory.weights.get(bytes);
            if (!in_place)
                memset(w.weight_sums, 0, bytes);
        }
        if (bias)
            w.bias_sums = (double*)memory.biases.get(layer.out * sizeof(double)),
            memset(w.bias_sums, 0, layer.out * sizeof(double));
        kernels_->convolution_backward(b, w);
    });
    for (int t = 0; t < threads; t++)
        sums[t] = memory_[t]->weights.data, bias_sums[t] = (const double*)memory_[t]->biases.data;
    if (b.weight_tiles.taps)
        unpack_tile_gradient(wanted, sums.data(), threads, (float*)(dense ? dense : sparse));
    else if (b.weight.begin && !in_place)
        unpack_gradient(wanted, b.weight, sums.data(), threads, is_double(), dense ? dense : sparse);
    if (dense && sparse)
        for (size_t o = 0, k = 0; o < size_t(layer.out); o++)
            for (size_t i = 0; i < layer.pattern.row_count(int(o)); i++, k++)
                put_scalar(
                    sparse, is_double(), k,
                    get_scalar(dense, is_double(), o * layer.pattern.row_length() + layer.pattern.row(int(o))[i]));
    for (int c = 0; bias && c < layer.out; c++) {
        double sum = 0;
        for (const double* part : bias_sums)
            sum += part[c];
        put_scalar(bias, is_double(), c, sum);
    }
}

}  // namespace regrow
