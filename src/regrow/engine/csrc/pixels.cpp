// Inference on few images: the forward steps of a plan through the kernels of pixels.hpp.
//
// A layout (which planes, which pitch, which offset for each tap) belongs to a program and a batch size and is kept
// until another batch comes. All tensors of one height and width share one pitch, wide enough for every convolution that
// writes them, because residuals are added plane to plane.
#include <algorithm>
#include <cstring>
#include <limits>

#include "context.hpp"
#include "threads.hpp"

namespace regrow {
namespace {

constexpr size_t kSlack = 64;          // elements that vectors may read behind a plane
constexpr long kWorkPerThread = 50000;  // multiply-adds below which a second thread costs more than it brings

// an odd number of cache lines of floats: planes a power of two apart would share a few sets of L1
size_t spread(size_t elements) { return ((elements + 15) / 16 | 1) * 16; }

struct Window {  // of a convolution or pool
    int kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
};

// How far rows (or columns) must lie apart so that the zeros between them serve both: no tap that reaches over the end
// of one row may meet a pixel of the next.
struct Axis {
    int read, apart;
    Axis(int in, int out, int kernel, int stride, int padding, int dilation) {
        read = out + (kernel - 1) * dilation / stride;
        const int last = std::min((in - 1 + padding) / stride, read - 1), first = stride == 1 ? padding : 0;
        apart = std::max({out, last + 1, read - first});
    }
};

}  // namespace

struct Plan::PixelLayout {
    struct Place {
        PixelShape shape;
        size_t offset;  // bytes
    };
    struct StepLayout {
        bool direct = false;   // the input is read where it lies
        bool aligned = false;  // its tensor has the pitch of its padded planes
        PixelPadding padding{};
        std::vector<int> slot, begin, first, count;
        std::vector<uint32_t> offsets;  // of the taps of one channel, then of all positions of a weight's row
    };
    int program = -1, batch = 0;
    std::vector<Place> tensors;
    std::map<std::pair<int, int>, size_t> masks;  // of a size: where its mask lies
    std::vector<StepLayout> steps;
    size_t padded = 0;  // where views with padding are put
    Scratch memory;
};

static Window window(const Geometry& g) {
    return {g.kernel_h,  g.kernel_w,  g.stride_h,   g.stride_w,
            g.padding_h, g.padding_w, g.dilation_h, g.dilation_w};
}

// Few images, and nothing but running statistics: this way is faster then. (A full tile of images costs the other
// kernels the same as a single one.)
bool Plan::takes_pixels(const Run& run, int program) const {
    if (!run.light || run.training || 4 * run.batch > 3 * lanes())
        return false;
    for (const NormState& n : run.norms)
        if (n.batch)
            return false;
    for (const TensorRecord& t : tensors_)
        if (t.width > kWidestPixels)
            return false;
    return std::all_of(programs_[program].begin(), programs_[program].end(), [&](const Step& s) {
        return s.kind == Kind::Convolution || s.target < 0 || targets_[s.target].add < 0;
    });
}

void Plan::lay_out_pixels(int program, int batch) {
    if (!pixels_)
        pixels_ = std::make_shared<PixelLayout>();
    PixelLayout& l = *pixels_;
    if (l.program == program && l.batch == batch)
        return;
    l.program = -1, l.batch = batch;
    const std::vector<Step>& steps = programs_[program];
    const size_t scalar = is_double() ? 8 : 4;

    std::map<std::pair<int, int>, std::pair<int, int>> sizes;  // height and width: rows and pitch
    for (const TensorRecord& t : tensors_)
        sizes[{t.height, t.width}] = {t.height, t.width};
    auto axes = [&](const TensorRecord& in, const TensorRecord& out, const Window& w) {
        return std::pair<Axis, Axis>(
            {in.height, out.height, w.kernel_h, w.stride_h, w.padding_h, w.dilation_h},
            {in.width, out.width, w.kernel_w, w.stride_w, w.padding_w, w.dilation_w});
    };
    for (const Step& step : steps) {
        if (step.kind != Kind::Convolution)
            continue;
        const TensorRecord &in = tensors_[views_[step.view].tensor[0]], &out = tensors_[targets_[step.target].tensor];
        const auto [rows, columns] = axes(in, out, window(layers_[step.layer].geometry));
        auto& size = sizes[{out.height, out.width}];
        size = {std::max(size.first, rows.apart), std::max(size.second, columns.apart)};
    }

    l.tensors.clear(), l.masks.clear();
    std::vector<size_t> slots;
    for (const TensorRecord& t : tensors_) {
        const auto [rows, pitch] = sizes[{t.height, t.width}];
        PixelShape s{batch, t.channels, t.height, t.width, rows, pitch, size_t(batch) * rows * pitch};
        if (t.flat)
            s.rows = s.pitch = 1, s.plane = batch;
        else
            s.plane = spread(s.plane);
        l.tensors.push_back({s, 0});
        if (t.program != program)
            continue;
        slots.resize(std::max(slots.size(), size_t(t.light_slot) + 1));
        slots[t.light_slot] = std::max(slots[t.light_slot], spread(t.channels * s.plane + kSlack) * scalar);
    }
    size_t bytes = 0;
    for (size_t& slot : slots) {
        const size_t begin = bytes;
        bytes += slot, slot = begin;
    }
    for (size_t i = 0; i < tensors_.size(); i++)
        if (tensors_[i].program == program)
            l.tensors[i].offset = slots[tensors_[i].light_slot];

    size_t padded = 0;
    l.steps.assign(steps.size(), {});
    for (size_t i = 0; i < steps.size(); i++) {
        const Step& step = steps[i];
        const bool pool = step.kind == Kind::Pool;
        if (step.kind != Kind::Convolution && !pool)
            continue;
        const int from = views_[step.view].tensor[0], to = targets_[step.target].tensor;
        const TensorRecord &in = tensors_[from], &out = tensors_[to];
        PixelLayout::StepLayout& s = l.steps[i];
        const PoolRecord none{}, &p = pool ? pools_[step.pool] : none;
        const Window w = pool ? Window{p.kernel_h,  p.kernel_w,  p.stride_h, p.stride_w,
                                       p.padding_h, p.padding_w, 1,          1}
                              : window(layers_[step.layer].geometry);
        const ViewRecord& view = views_[step.view];
        s.direct = !pool && w.kernel_h * w.kernel_w * w.stride_h * w.stride_w == 1 && w.padding_h + w.padding_w == 0 &&
                   view.tensor[1] < 0 && view.norm[0] < 0 && !view.relu;
        if (s.direct)
            continue;
        const auto [rows, columns] = axes(in, out, w);
        const PixelShape& shape = l.tensors[to].shape;
        s.padding = {nullptr,
                     w.stride_h,
                     w.stride_w,
                     w.padding_h,
                     w.padding_w,
                     pool ? rows.apart : shape.rows,
                     pool ? columns.apart : shape.pitch,
                     rows.read,
                     columns.read,
                     0,
                     0,
                     nullptr,
                     nullptr,
                     nullptr,
                     nullptr,
                     pool && p.maximum ? -std::numeric_limits<double>::infinity() : 0};
        PixelPadding& g = s.padding;
        g.plane = spread((size_t(batch - 1) * g.rows + g.read_h) * g.pitch + g.read_w);
        s.slot.assign(size_t(w.stride_h) * w.stride_w, -1);
        int planes = 0;
        std::vector<size_t> taps;
        for (int ky = 0; ky < w.kernel_h; ky++)
            for (int kx = 0; kx < w.kernel_w; kx++) {
                const int y = ky * w.dilation_h, x = kx * w.dilation_w;
                int& slot = s.slot[size_t(y % w.stride_h) * w.stride_w + x % w.stride_w];
                if (slot < 0)
                    slot = planes++;
                taps.push_back(slot * g.plane + size_t(y / w.stride_h) * g.pitch + x / w.stride_w);
            }
        for (int phase = 0; phase < w.stride_w; phase++) {
            s.begin.push_back((phase + w.padding_w * (w.stride_w - 1)) % w.stride_w);
            s.first.push_back((s.begin.back() + w.padding_w) / w.stride_w);
            const int there = (in.width - s.begin.back() + w.stride_w - 1) / w.stride_w;
            s.count.push_back(std::max(0, std::min(there, g.read_w - s.first.back())));
        }
        g.begin = s.begin.data(), g.first = s.first.data(), g.count = s.count.data();
        g.slot = s.slot.data(), g.channel = planes * g.plane;
        for (int c = 0; c < (pool ? 1 : in.channels); c++)
            for (size_t tap : taps)
                s.offsets.push_back(uint32_t(c * g.channel + tap));
        padded = std::max(padded, (in.channels * g.channel + size_t(g.pitch) * g.read_h + kSlack) * scalar);
        if (in.channels * g.channel > std::numeric_limits<uint32_t>::max())
            throw std::invalid_argument("an image is too large for its batch to be computed pixel by pixel");
        s.aligned = !pool && w.stride_h * w.stride_w == 1 && l.tensors[from].shape.rows == g.rows &&
                    l.tensors[from].shape.pitch == g.pitch && !in.flat && g.read_h >= in.height + w.padding_h &&
                    g.read_w >= in.width + w.padding_w;
        if (s.aligned)
            l.masks[{in.height, in.width}] = 0;
    }
    for (auto& [size, offset] : l.masks) {
        const auto [rows, pitch] = sizes[size];
        offset = bytes, bytes += spread(size_t(batch) * rows * pitch + kSlack) * scalar;
    }
    l.padded = bytes;
    char* memory = l.memory.get(bytes + padded);
    for (const auto& [size, offset] : l.masks) {
        const auto [rows, pitch] = sizes[size];
        memset(memory + offset, 0, size_t(batch) * rows * pitch * scalar);
        for (int row = 0; row < batch * rows; row++)
            if (row % rows < size.first)
                memset(memory + offset + size_t(row) * pitch * scalar, 0xff, size.second * scalar);
    }
    l.program = program;
}

void Plan::forward_pixels(Context& context, int program) {
    lay_out_pixels(program, context.run.batch);
    const PixelLayout& l = *pixels_;
    const PixelKernels& k = kernels_->pixels;
    char* memory = pixels_->memory.data;
    const Call& call = context.call;
    auto each = [&](int channels, long work, auto run) {  // channels among the threads
        const int count = std::max(1, std::min({context.run.threads, channels, int(work / kWorkPerThread)}));
        if (count == 1)
            return run(0, channels);
        parallel(count, [&](int t) { run(int(long(channels) * t / count), int(long(channels) * (t + 1) / count)); });
    };
    auto view_of = [&](int index, bool aligned) {
        const ViewRecord& record = views_[index];
        PixelView v{};
        v.shape = l.tensors[record.tensor[0]].shape;
        auto term = [&](int j) {
            const NormState* n = record.norm[j] >= 0 ? &context.run.norms[record.norm[j]] : nullptr;
            return Term{memory + l.tensors[record.tensor[j]].offset, n ? n->scale.data() : nullptr,
                        n ? n->shift.data() : nullptr};
        };
        v.first = term(0);
        if (record.tensor[1] >= 0)
            v.second = term(1);
        v.relu = record.relu;
        if (aligned)
            v.mask = memory + l.masks.at({v.shape.height, v.shape.width});
        return v;
    };
    auto elements = [](const PixelShape& s) { return long(s.channels) * long(s.plane); };
    for (size_t i = 0; i < programs_[program].size(); i++) {
        const Step& step = programs_[program][i];
        const PixelLayout::StepLayout& s = l.steps[i];
        PixelPadding padding = s.padding;
        padding.data = memory + l.padded;
        const PixelView view = step.view >= 0 ? view_of(step.view, s.aligned) : PixelView{};
        const PixelLayout::Place* target = step.target >= 0 ? &l.tensors[targets_[step.target].tensor] : nullptr;
        char* to = target ? memory + target->offset : nullptr;
        void* border = step.border >= 0 ? (void*)call.borders[step.border] : nullptr;
        if (padding.plane)
            each(view.shape.channels, elements(view.shape),
                 [&](int first, int last) { k.fill(view, padding, first, last); });
        switch (step.kind) {
            case Kind::Import:
                k.unpack(border, target->shape, to, 0, target->shape.channels);
                break;
            case Kind::Export:
                k.pack(view, false, border, 0, view.shape.channels);
                break;
            case Kind::Flatten:
                k.pack(view, true, to, 0, view.shape.channels);
                break;
            case Kind::Materialise: {
                const PixelShape& shape = target->shape;
                const int zero = 0, width = shape.width;
                const PixelPadding copy{to,           1,           1,           0,     0,     shape.rows, shape.pitch, shape.height,
                                        shape.width, shape.plane, shape.plane, &zero, &zero, &zero,      &width,      0};
                each(shape.channels, elements(shape), [&](int first, int last) { k.fill(view, copy, first, last); });
                break;
            }
            case Kind::Pool: {
                const PoolRecord& p = pools_[step.pool];
                const PixelPool pool{padding.data,
                                     padding.rows,
                                     padding.pitch,
                                     padding.channel,
                                     s.offsets.data(),
                                     int(s.offsets.size()),
                                     p.maximum,
                                     1.0 / (double(p.kernel_h) * p.kernel_w),
                                     to,
                                     target->shape};
                each(view.shape.channels, elements(target->shape) * pool.taps,
                     [&](int first, int last) { k.pool(pool, first, last); });
                break;
            }
            case Kind::Convolution: {
                const Layer& layer = layers_[step.layer];
                const int add = targets_[step.target].add;
                const PixelConvolution c{s.direct ? view.first.data : padding.data,
                                         s.direct ? view.shape.plane : padding.channel,
                                         s.direct ? nullptr : s.offsets.data(),
                                         layer.pattern.starts(),
                                         layer.pattern.row(0),
                                         (const void*)call.values[step.layer],
                                         layer.pattern.shared,
                                         step.bias >= 0 ? (const void*)call.biases[step.bias] : nullptr,
                                         add >= 0 ? memory + l.tensors[add].offset : nullptr,
                                         to,
                                         target->shape.plane,
                                         target->shape.pixels()};
                each(layer.out / c.shared, long(layer.pattern.count()) * long(c.count),
                     [&](int first, int last) { k.convolve(c, first, last); });
                break;
            }
            default:
                throw std::logic_error("a step backward in a forward program");
        }
    }
}

}  // namespace regrow
