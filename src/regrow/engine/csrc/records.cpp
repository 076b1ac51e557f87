// Building a plan: every number that comes from outside is checked here, before a kernel may use it.
#include <algorithm>
#include <stdexcept>

#include "plan.hpp"

namespace regrow {
namespace {

void require(bool good, const char* what) {
    if (!good)
        throw std::invalid_argument(what);
}
template <class T>
int append(std::vector<T>& list, T item) {
    list.push_back(item);
    return int(list.size()) - 1;
}
template <class T>
bool within(int i, const std::vector<T>& list) {
    return i >= 0 && size_t(i) < list.size();
}
template <class T>
bool absent_or_within(int i, const std::vector<T>& list) {
    return i == -1 || within(i, list);
}

constexpr int kLargest = 1 << 20;
bool size_ok(int n) { return n >= 1 && n <= kLargest; }

bool same(const TensorRecord& a, const TensorRecord& b) {
    return a.channels == b.channels && a.height == b.height && a.width == b.width && a.flat == b.flat;
}
int convolved(int size, int kernel, int stride, int padding, int dilation) {
    const int reach = size + 2 * padding - dilation * (kernel - 1) - 1;
    return reach < 0 ? 0 : reach / stride + 1;
}

}  // namespace

int Plan::add_program() { return append(programs_, {}); }
int Plan::add_border(BorderRecord b) {
    require(size_ok(b.channels) && size_ok(b.height) && size_ok(b.width), "a border's sizes are not positive");
    return append(borders_, b);
}
int Plan::add_layer(int out, int in, Geometry g) {
    require(size_ok(out) && size_ok(in), "a layer's channels are not positive");
    require(g.kernel_h >= 1 && g.kernel_w >= 1 && g.kernel_h <= 1024 && g.kernel_w <= 1024,
            "a kernel's size is not in 1 .. 1024");
    require(g.stride_h >= 1 && g.stride_w >= 1 && g.stride_h <= 1024 && g.stride_w <= 1024,
            "a stride is not in 1 .. 1024");
    require(g.padding_h >= 0 && g.padding_w >= 0 && g.padding_h <= 4096 && g.padding_w <= 4096,
            "a padding is not in 0 .. 4096");
    require(g.dilation_h >= 1 && g.dilation_w >= 1 && g.dilation_h <= 4096 && g.dilation_w <= 4096,
            "a dilation is not in 1 .. 4096");
    return append(layers_, Layer{out, in, g, Pattern(out, in, g.kernel_h * g.kernel_w, nullptr, 0, false)});
}
int Plan::add_tensor(TensorRecord t) {
    require(within(t.program, programs_) && t.slot >= 0 && t.slot < kLargest && t.light_slot >= 0 &&
                t.light_slot < kLargest,
            "a tensor's program or slot is not there");
    require(size_ok(t.channels) && size_ok(t.height) && size_ok(t.width), "a tensor's sizes are not positive");
    require(!t.flat || (t.height == 1 && t.width == 1), "a flat tensor has more than one pixel");
    return append(tensors_, t);
}
int Plan::add_norm(NormRecord n) {
    require(within(n.tensor, tensors_) && tensors_[n.tensor].channels == n.channels,
            "a norm's channels are not its tensor's");
    return append(norms_, n);
}
int Plan::add_view(ViewRecord v) {
    require(within(v.tensor[0], tensors_) && absent_or_within(v.tensor[1], tensors_), "a view's tensor is not there");
    for (int j = 0; j < 2; j++) {
        require(absent_or_within(v.norm[j], norms_), "a view's norm is not there");
        require(v.norm[j] < 0 || (v.tensor[j] >= 0 && norms_[v.norm[j]].tensor == v.tensor[j]),
                "a view's norm belongs to another tensor");
    }
    require(v.tensor[1] < 0 || same(tensors_[v.tensor[0]], tensors_[v.tensor[1]]),
            "a view adds tensors of different shapes");
    require(v.probability >= 0 && v.probability <= 1, "a dropout probability is not in [0, 1]");
    return append(views_, v);
}
int Plan::add_gradient(GradientRecord g) {
    require(within(g.value, tensors_) && within(g.source[0], tensors_) && absent_or_within(g.source[1], tensors_),
            "a gradient's tensor is not there");
    for (int j = 0; j < 2; j++) {
        require(absent_or_within(g.norm[j], norms_), "a gradient's norm is not there");
        require(g.norm[j] < 0 || norms_[g.norm[j]].tensor == g.value, "a gradient's norm belongs to another tensor");
        require(g.source[j] < 0 || same(tensors_[g.value], tensors_[g.source[j]]),
                "a gradient has not its tensor's shape");
    }
    require(absent_or_within(g.store, tensors_) && (g.store < 0 || same(tensors_[g.value], tensors_[g.store])),
            "a gradient is stored in another shape");
    return append(gradients_, g);
}
int Plan::add_target(TargetRecord t) {
    require(within(t.tensor, tensors_) && absent_or_within(t.add, tensors_) && absent_or_within(t.gate, views_),
            "a target's tensor or gate is not there");
    require(t.add < 0 || same(tensors_[t.tensor], tensors_[t.add]), "a target adds a tensor of another shape");
    require(t.gate < 0 || same(tensors_[t.tensor], tensors_[views_[t.gate].tensor[0]]),
            "a target's gate has another shape");
    return append(targets_, t);
}
int Plan::add_pool(PoolRecord p) {
    require(p.kernel_h >= 1 && p.kernel_w >= 1 && p.kernel_h <= kLargest && p.kernel_w <= kLargest,
            "a pool's kernel is not positive");
    require(p.stride_h >= 1 && p.stride_w >= 1 && p.stride_h <= kLargest && p.stride_w <= kLargest,
            "a pool's stride is not positive");
    require(p.padding_h >= 0 && p.padding_w >= 0 && 2 * p.padding_h <= p.kernel_h && 2 * p.padding_w <= p.kernel_w,
            "a pool's padding is more than half its kernel");
    return append(pools_, p);
}

void Plan::add_step(int program, Step s) {
    require(within(program, programs_), "a step's program is not there");
    require(absent_or_within(s.view, views_) && absent_or_within(s.gradient, gradients_) &&
                absent_or_within(s.target, targets_),
            "a step's record is not there");
    require(absent_or_within(s.layer, layers_) && absent_or_within(s.border, borders_) &&
                absent_or_within(s.pool, pools_) && s.bias >= -1 && s.bias < kLargest,
            "a step's record is not there");
    const TensorRecord* to = s.target >= 0 ? &tensors_[targets_[s.target].tensor] : nullptr;
    const TensorRecord* from = s.view >= 0 ? &tensors_[views_[s.view].tensor[0]] : nullptr;
    const TensorRecord* d = s.gradient >= 0 ? &tensors_[gradients_[s.gradient].value] : nullptr;
    auto fits = [&](const TensorRecord& in, const TensorRecord& out) {
        const Layer& l = layers_[s.layer];
        const Geometry& g = l.geometry;
        require(in.channels == l.in && out.channels == l.out && in.flat == out.flat,
                "a convolution's channels are not its tensors'");
        require(out.height == convolved(in.height, g.kernel_h, g.stride_h, g.padding_h, g.dilation_h) &&
                    out.width == convolved(in.width, g.kernel_w, g.stride_w, g.padding_w, g.dilation_w),
                "a convolution's output has another size");
        require(!in.flat || (g.kernel_h * g.kernel_w == 1 && g.stride_h == 1 && g.stride_w == 1 && g.padding_h == 0 &&
                             g.padding_w == 0),
                "a flat tensor takes part in matrix products only");
    };
    auto pools = [&](const TensorRecord& in, const TensorRecord& out) {
        const PoolRecord& p = pools_[s.pool];
        require(in.channels == out.channels &&
                    out.height == convolved(in.height, p.kernel_h, p.stride_h, p.padding_h, 1) &&
                    out.width == convolved(in.width, p.kernel_w, p.stride_w, p.padding_w, 1),
                "a pool's output has another size");
        require(!in.flat && out.flat == (out.height == 1 && out.width == 1),
                "a pool's one-pixel output is flat, its input is not");
    };
    auto flattens = [&](const TensorRecord& in, const TensorRecord& out) {
        require(!in.flat && out.flat && long(in.channels) * in.height * in.width == out.channels,
                "a flattened tensor has another size");
    };
    auto borders = [&](const TensorRecord& t) {
        const BorderRecord& b = borders_[s.border];
        require(t.channels == b.channels && t.height == b.height && t.width == b.width,
                "a border's sizes are not its tensor's");
    };
    switch (s.kind) {
        case Kind::Import:
            require(s.border >= 0 && to, "an import needs a border and a target");
            borders(*to);
            break;
        case Kind::Export:
            require(s.border >= 0 && from, "an export needs a border and a view");
            borders(*from);
            break;
        case Kind::ExportGradient:
            require(s.border >= 0 && d, "an export needs a border and a gradient");
            borders(*d);
            break;
        case Kind::Convolution:
            require(from && to && s.layer >= 0, "a convolution needs a view, a target and a layer");
            fits(*from, *to);
            break;
        case Kind::ConvolutionBackward:
            require(from && d && s.layer >= 0, "a convolution's backward needs a view, a gradient and a layer");
            fits(*from, *d), require(!to || same(*from, *to), "an input gradient has another shape");
            break;
        case Kind::Materialise:
            require(from && to && same(*from, *to), "materialising needs a view and a target of one shape");
            break;
        case Kind::Gradient:
            require(d && to && same(*d, *to), "a gradient and its target have different shapes");
            break;
        case Kind::Pool:
            require(from && to && s.pool >= 0, "a pool needs a view and a target");
            pools(*from, *to);
            break;
        case Kind::PoolBackward:
            require(from && d && to && s.pool >= 0 && same(*from, *to),
                    "a pool's backward needs view, gradient and target");
            pools(*from, *d);
            break;
        case Kind::Flatten:
            require(from && to, "flattening needs a view and a target");
            flattens(*from, *to);
            break;
        case Kind::FlattenBackward:
            require(d && to, "flattening back needs a gradient and a target");
            flattens(*to, *d);
            break;
        default:
            require(false, "an unknown kind of step");
    }
    biases_ = std::max(biases_, size_t(s.bias + 1));
    programs_[program].push_back(s);
}

}  // namespace regrow
