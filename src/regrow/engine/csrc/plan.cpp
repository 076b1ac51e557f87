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

std::shared_ptr<Run> Plan::forward(int program, int batch, int share, int threads, bool training, bool save,
                                   uint64_t seed, const Call& call) {
    std::lock_guard<std::mutex> lock(mutex_);
    check(call, false);
    if (batch < 1)
        throw std::invalid_argument("an empty batch");
    if (share < 1 || share > batch || (share < batch && (save || training)))
        throw std::invalid_argument("images one part after the other, which are one batch to the norms or to backward");
    const int parts = batch / share;  // the last takes the rest, too
    std::vector<ForwardPack> packs(parts > 1 ? layers_.size() : 0);
    std::shared_ptr<Run> run;
    for (int number = 0; number < parts; number++) {
        const int first = number * share, size = number == parts - 1 ? batch - first : share;
        Call part = call;
        for (size_t b = 0; b < borders_.size(); b++)
            part.borders[b] += uint64_t(first) * borders_[b].channels * borders_[b].height * borders_[b].width *
                               (is_double() ? 8 : 4);
        run = std::make_shared<Run>();
        set_sizes(*run, size, threads);
        run->training = training, run->light = !save, run->seed = seed;
        run_forward(program, *run, parts > 1 ? packs.data() : nullptr, part);
    }
    return run;
}

void Plan::run_forward(int program, Run& run, ForwardPack* packs, const Call& call) {
    run.norms.resize(norms_.size());
    Context context(run, call, *this);
    context.packs = packs;
    for (size_t n = 0; n < norms_.size(); n++) {
        run.norms[n].batch = run.training || !call.norms[4 * n + 2];
        if (!run.norms[n].batch)
            start_norm(context, int(n), nullptr);
    }
    if (takes_pixels(run, program))
        return forward_pixels(context, program);
    run.arenas[program] = take_arena(program, run);
    for (const Step& step : programs_.at(program))
        run_step(context, step);
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
