// Runs the steps of a plan.
#include "plan.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "context.hpp"
#include "threads.hpp"

namespace regrow {

Plan::Plan(Dtype dtype) : dtype_(dtype), variant_(best_variant()) {
    kernels_ = dtype == Dtype::Float32    ? &variant_->float32
               : dtype == Dtype::BFloat16 ? &variant_->bfloat16
                                          : &variant_->float64;
}

WeightKind Plan::weight_kind() const {
    if (is_double())
        return WeightKind::Double;
    return dtype_ == Dtype::BFloat16 && variant_->bfloat16_weights ? WeightKind::BFloat16 : WeightKind::Float;
}

// Cuts [0, tiles) among the threads and adds up their private statistics in a fixed order.
void Plan::workers(Context& context, const Step& step, int tiles, int channels,
                   const std::function<void(Worker&)>& work) {
    const int count = std::max(1, std::min(context.run.threads, tiles));
    while (int(memory_.size()) < count)
        memory_.push_back(std::make_unique<ThreadMemory>());
    const bool sums =
        step.target >= 0 && (targets_[step.target].gate >= 0 || tensors_[targets_[step.target].tensor].statistics);
    const size_t bytes = sums ? size_t(channels) * kStatistics * sizeof(double) : 0;
    parallel(count, [&](int thread) {
        ThreadMemory& memory = *memory_[thread];
        Worker worker{};
        worker.first = int(long(tiles) * thread / count), worker.last = int(long(tiles) * (thread + 1) / count);
        worker.owner = &memory;
        worker.scratch = [](void* owner, int slot, size_t n) { return ((ThreadMemory*)owner)->slots[slot].get(n); };
        if (sums)
            worker.statistics = (double*)memory.statistics.get(bytes), memset(worker.statistics, 0, bytes);
        work(worker);
    });
    if (!sums)
        return;
    statistics_.assign(size_t(channels) * kStatistics, 0);
    for (int thread = 0; thread < count; thread++)
        for (size_t i = 0; i < statistics_.size(); i++)
            statistics_[i] += ((double*)memory_[thread]->statistics.data)[i];
}

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
    if (takes_tiles(layer.pattern, tensors_[views_[step.view].tensor[0]])) {
        pack_tiles(layer.pattern, shapes.input_taps, (const float*)values, packed_tiles_);
        f.tiles = packed_tiles_.weights[0];
    } else if (shapes.product && shapes.input_block == layer.in && layer.pattern.shared == 1) {
        f.forward = product_segments(layer.pattern, f.ring, values, weight_kind(), packed_forward_);
    } else {
        pack_forward(layer.pattern, f.ring, shapes.input_taps, shapes.input_block, values, weight_kind(),
                     packed_forward_);
        f.forward = packed_forward_.segments;
    }
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

void Plan::run_step(Context& context, const Step& step) {
    View gate{}, view{};
    Target target{};
    GradientView gradient{};
    const bool convolution = step.kind == Kind::Convolution || step.kind == Kind::ConvolutionBackward;
    if (!convolution) {
        if (step.view >= 0)
            view = context.view(step.view);
        if (step.gradient >= 0)
            gradient = context.gradient(step.gradient);
        if (step.target >= 0)
            target = context.target(step.target, gate);
    }
    const int channels = target.shape.channels, image_tiles = context.run.image_tiles;
    // steps that write single columns of a flat tensor leave those beyond the batch alone
    if ((step.kind == Kind::Pool || step.kind == Kind::Flatten) && tensors_[targets_[step.target].tensor].flat &&
        image_tiles % context.run.group)
        memset(target.data + (target.shape.tiles - 1) * target.shape.tile_bytes(), 0, target.shape.tile_bytes());
    Border border{};
    if (step.border >= 0) {
        const BorderRecord& record = borders_[step.border];
        const int tensor = step.kind == Kind::Import   ? targets_[step.target].tensor
                           : step.kind == Kind::Export ? views_[step.view].tensor[0]
                                                       : gradients_[step.gradient].value;
        border = {(void*)context.call.borders[step.border],
                  context.run.batch,
                  record.channels,
                  record.height,
                  record.width,
                  tensors_[tensor].flat};
        if (!border.data)
            return;
    }
    Pool pool{};
    if (step.pool >= 0) {
        const PoolRecord& p = pools_[step.pool];
        pool = {p.maximum,   p.kernel_h, p.kernel_w, p.stride_h, p.stride_w, p.padding_h,
                p.padding_w, view,       target,     gradient,   target};
    }
    const Kernels& k = *kernels_;
    switch (step.kind) {
        case Kind::Convolution:
            run_convolution(context, step);
            break;
        case Kind::ConvolutionBackward:
            run_convolution_backward(context, step);
            break;
        case Kind::Import:
            workers(context, step, target.shape.tiles, channels, [&](Worker& w) { k.import_rows(border, target, w); });
            break;
        case Kind::Export:
            workers(context, step, view.shape.tiles, channels,
                    [&](Worker& w) { k.export_rows(border, &view, nullptr, w); });
            break;
        case Kind::ExportGradient:
            workers(context, step, gradient.shape.tiles, channels,
                    [&](Worker& w) { k.export_rows(border, nullptr, &gradient, w); });
            break;
        case Kind::Materialise:
            workers(context, step, view.shape.tiles, channels, [&](Worker& w) { k.materialise(view, target, w); });
            break;
        case Kind::Gradient:
            workers(context, step, gradient.shape.tiles, channels, [&](Worker& w) { k.gradient(gradient, target, w); });
            break;
        case Kind::Pool:
            workers(context, step, image_tiles, channels, [&](Worker& w) { k.pool_forward(pool, w); });
            break;
        case Kind::PoolBackward:
            workers(context, step, image_tiles, channels, [&](Worker& w) { k.pool_backward(pool, w); });
            break;
        case Kind::Flatten:
            workers(context, step, image_tiles, channels, [&](Worker& w) { k.flatten_forward(view, target, w); });
            break;
        case Kind::FlattenBackward:
            workers(context, step, image_tiles, channels, [&](Worker& w) { k.flatten_backward(gradient, target, w); });
            break;
    }
    if (step.target < 0)
        return;
    const TargetRecord& record = targets_[step.target];
    if (record.gate >= 0)
        finish_gate(context, views_[record.gate]);
    if (tensors_[record.tensor].statistics)
        finish_statistics(context, record.tensor);
}

void Plan::check(const Call& call, bool backward) const {
    auto lists = [](size_t have, size_t want, const char* what) {
        if (have != want)
            throw std::invalid_argument("expected " + std::to_string(want) + " " + what + " and got " +
                                        std::to_string(have));
    };
    lists(call.borders.size(), borders_.size(), "borders");
    lists(call.values.size(), layers_.size(), "values");
    lists(call.biases.size(), biases_, "biases");
    lists(call.norms.size(), 4 * norms_.size(), "norm tensors");
    if (!backward)
        return;
    lists(call.value_gradients.size(), layers_.size(), "value gradients");
    lists(call.dense_gradients.size(), layers_.size(), "dense gradients");
    lists(call.bias_gradients.size(), biases_, "bias gradients");
    lists(call.norm_gradients.size(), 2 * norms_.size(), "norm gradients");
}

std::shared_ptr<Run> Plan::forward(int program, int batch, int threads, bool training, bool save, uint64_t seed,
                                   const Call& call) {
    std::lock_guard<std::mutex> lock(mutex_);
    check(call, false);
    if (batch < 1)
        throw std::invalid_argument("an empty batch");
    const std::vector<Step>& steps = programs_.at(program);
    auto run = std::make_shared<Run>();
    set_sizes(*run, batch, threads);
    run->training = training, run->light = !save, run->seed = seed;
    run->norms.resize(norms_.size());
    Context context(*run, call, *this);
    for (size_t n = 0; n < norms_.size(); n++) {
        run->norms[n].batch = training || !call.norms[4 * n + 2];
        if (!run->norms[n].batch)
            start_norm(context, int(n), nullptr);
    }
    if (takes_pixels(*run, program)) {
        forward_pixels(context, program);
        return run;
    }
    run->arenas[program] = take_arena(program, *run);
    for (const Step& step : steps)
        run_step(context, step);
    return run;
}

void Plan::backward(Run& run, int program, int first, int last, const Call& call) {
    std::lock_guard<std::mutex> lock(mutex_);
    check(call, true);
    if (run.light)
        throw std::invalid_argument("a pass that saved nothing has no backward");
    if (first < 0 || first > last || size_t(last) > programs_.at(program).size())
        throw std::invalid_argument("steps that are not there");
    if (first == 0) {
        run.arenas[program] = take_arena(program, run);
        for (NormState& n : run.norms)
            std::fill(n.sums.begin(), n.sums.end(), 0.0);
    }
    Context context(run, call, *this);
    for (int i = first; i < last; i++)
        run_step(context, programs_[program][i]);
    if (last == int(programs_[program].size()))
        run.arenas.erase(program);
}

void Plan::set_pattern(int layer, const int64_t* indices, size_t count) {
    std::lock_guard<std::mutex> lock(mutex_);
    Layer& l = layers_.at(layer);
    const Geometry& g = l.geometry;
    const bool product =
        g.kernel_h * g.kernel_w == 1 && g.stride_h == 1 && g.stride_w == 1 && g.padding_h == 0 && g.padding_w == 0;
    l.pattern = Pattern(l.out, l.in, g.kernel_h * g.kernel_w, indices, count, product);
}

}  // namespace regrow
