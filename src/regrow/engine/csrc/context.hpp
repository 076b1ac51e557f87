// One call in progress: turns the numbers of a plan's records into the pointers that kernels take.
#pragma once
#include <algorithm>
#include <stdexcept>

#include "plan.hpp"

namespace regrow {

constexpr size_t kStreamBytes = 6000000;  // tensors from here on are written past the caches

inline void set_scalar(std::vector<double>& raw, bool is_double, size_t i, double value) {
    if (is_double)
        raw[i] = value;
    else
        ((float*)raw.data())[i] = float(value);
}
inline double get_scalar(const void* p, bool is_double, size_t i) {
    return is_double ? ((const double*)p)[i] : ((const float*)p)[i];
}
inline void put_scalar(void* p, bool is_double, size_t i, double value) {
    if (is_double)
        ((double*)p)[i] = value;
    else
        ((float*)p)[i] = float(value);
}

struct Plan::Context {
    Context(Run& run_, const Call& call_, const Plan& plan_) : run(run_), call(call_), plan(plan_) {}
    Run& run;
    const Call& call;
    const Plan& plan;
    ForwardPack* packs = nullptr;  // of each layer, where one forward pass comes in parts
    std::vector<double> q, r;  // two batch norms of one tensor: their sums

    char* at(int tensor) const {
        const TensorRecord& t = plan.tensors_[tensor];
        const auto arena = run.arenas.find(t.program);
        if (arena == run.arenas.end())
            throw std::logic_error("a step reads a tensor of a program that has not run");
        return arena->second->data + offsets(t.program)[run.light ? t.light_slot : t.slot];
    }
    const std::vector<size_t>& offsets(int p) const {
        auto& found = offsets_[p];
        if (found.empty())
            found = plan.slot_offsets(p, run);
        return found;
    }
    Shape shape(int tensor) const { return plan.shape(plan.tensors_[tensor], run); }

    View view(int i) const {
        const ViewRecord& record = plan.views_[i];
        View v{};
        v.shape = shape(record.tensor[0]);
        auto term = [&](int j) {
            const NormState* n = record.norm[j] >= 0 ? &run.norms[record.norm[j]] : nullptr;
            return Term{at(record.tensor[j]), n ? n->scale.data() : nullptr, n ? n->shift.data() : nullptr};
        };
        v.first = term(0);
        if (record.tensor[1] >= 0)
            v.second = term(1);
        v.relu = record.relu;
        if (run.training && record.probability > 0) {
            const double keep = 1 - record.probability;
            v.keep = uint32_t(std::clamp(keep * 4294967296.0, 1.0, 4294967295.0));
            v.keep_scale = keep > 0 ? 1 / keep : 0;
            v.seed = (run.seed + uint64_t(i) + 1) * 0x9e3779b97f4a7c15ull;
            v.seed ^= v.seed >> 29;
        }
        return v;
    }
    GradientView gradient(int i) {
        const GradientRecord& record = plan.gradients_[i];
        GradientView g{};
        g.shape = shape(record.value);
        for (int j = 0; j < 2; j++) {
            if (record.source[j] < 0)
                continue;
            g.source[j] = at(record.source[j]);
            if (record.norm[j] < 0)
                continue;
            const NormState& n = run.norms[record.norm[j]];
            g.factor[j] = n.p.data();
            if (!n.batch)
                continue;
            if (g.q && record.norm[0] == record.norm[1])
                continue;
            g.value = at(record.value);
            if (g.q) {
                q.resize(n.q.size()), r.resize(n.q.size());
                for (int c = 0; c < g.shape.channels; c++) {
                    set_scalar(q, plan.is_double(), c,
                               get_scalar(g.q, plan.is_double(), c) + get_scalar(n.q.data(), plan.is_double(), c));
                    set_scalar(r, plan.is_double(), c,
                               get_scalar(g.r, plan.is_double(), c) + get_scalar(n.r.data(), plan.is_double(), c));
                }
                g.q = q.data(), g.r = r.data();
            } else {
                g.q = n.q.data(), g.r = n.r.data();
            }
        }
        if (record.store >= 0)
            g.store = at(record.store), g.stream = g.shape.bytes() >= kStreamBytes;
        return g;
    }
    // The record's gate must outlive the target.
    Target target(int i, View& gate) const {
        const TargetRecord& record = plan.targets_[i];
        const TensorRecord& tensor = plan.tensors_[record.tensor];
        Target t{};
        t.shape = shape(record.tensor);
        t.data = at(record.tensor);
        if (record.add >= 0)
            t.add = at(record.add);
        if (record.gate >= 0)
            gate = view(record.gate), t.gate = &gate;
        if (tensor.statistics)
            for (size_t n = 0; n < plan.norms_.size(); n++)
                t.statistics |= plan.norms_[n].tensor == record.tensor && run.norms[n].batch;
        t.stream = record.add < 0 && t.shape.bytes() >= kStreamBytes;
        return t;
    }

  private:
    mutable std::map<int, std::vector<size_t>> offsets_;
};

}  // namespace regrow
