// Batch normalisation: coefficients from sums forward, and those of its gradient backward, all in double.
#include <algorithm>
#include <cmath>

#include "context.hpp"

namespace regrow {

void Plan::start_norm(Context& context, int index, const double* sums) {
    const NormRecord& record = norms_[index];
    NormState& n = context.run.norms[index];
    const uint64_t* pointers = &context.call.norms[4 * size_t(index)];
    const void *weight = (const void*)pointers[0], *bias = (const void*)pointers[1];
    void *running_mean = (void*)pointers[2], *running_variance = (void*)pointers[3];
    const size_t channels = record.channels;
    n.mean.resize(channels), n.inverse_deviation.resize(channels), n.scale.resize(channels), n.shift.resize(channels);
    const TensorRecord& tensor = tensors_[record.tensor];
    const double count = double(context.run.batch) * (tensor.flat ? 1 : tensor.height * tensor.width);
    for (size_t c = 0; c < channels; c++) {
        double mean, variance;
        if (sums) {
            mean = sums[c * kStatistics] / count;
            variance = std::max(0.0, sums[c * kStatistics + 1] / count - mean * mean);
            if (running_mean && context.run.training) {
                const double m = record.momentum, old_mean = get_scalar(running_mean, is_double(), c),
                             old = get_scalar(running_variance, is_double(), c);
                put_scalar(running_mean, is_double(), c, old_mean + m * (mean - old_mean));
                put_scalar(running_variance, is_double(), c, old + m * (variance * count / (count - 1) - old));
            }
        } else {
            mean = get_scalar(running_mean, is_double(), c), variance = get_scalar(running_variance, is_double(), c);
        }
        const double inverse = 1 / std::sqrt(variance + record.epsilon),
                     scale = (weight ? get_scalar(weight, is_double(), c) : 1) * inverse;
        n.mean[c] = mean, n.inverse_deviation[c] = inverse;
        set_scalar(n.scale, is_double(), c, scale);
        set_scalar(n.shift, is_double(), c, (bias ? get_scalar(bias, is_double(), c) : 0) - mean * scale);
    }
}

void Plan::finish_statistics(Context& context, int tensor) {
    for (size_t n = 0; n < norms_.size(); n++)
        if (norms_[n].tensor == tensor && context.run.norms[n].batch)
            start_norm(context, int(n), statistics_.data());
}

// Sums of d and d * y over the batch, for each norm in the view:  dy = p d + q y + r  (batch statistics; else dy = p d)
void Plan::finish_gate(Context& context, const ViewRecord& view) {
    for (int j = 0; j < 2; j++) {
        if (view.tensor[j] < 0 || view.norm[j] < 0)
            continue;
        const int index = view.norm[j];
        NormState& n = context.run.norms[index];
        const TensorRecord& tensor = tensors_[norms_[index].tensor];
        const double count = double(context.run.batch) * (tensor.flat ? 1 : tensor.height * tensor.width);
        const size_t channels = norms_[index].channels;
        n.p.resize(channels), n.q.resize(channels), n.r.resize(channels), n.sums.resize(2 * channels);
        void *weight = (void*)context.call.norm_gradients[2 * size_t(index)],
             *bias = (void*)context.call.norm_gradients[2 * size_t(index) + 1];
        for (size_t c = 0; c < channels; c++) {
            const double sum = n.sums[2 * c] += statistics_[c * kStatistics];
            const double product = n.sums[2 * c + 1] += statistics_[c * kStatistics + 1 + j];
            const double inverse = n.inverse_deviation[c], mean = n.mean[c],
                         scale = get_scalar(n.scale.data(), is_double(), c);
            const double slope = (product - mean * sum) * inverse;
            if (weight)
                put_scalar(weight, is_double(), c, slope);
            if (bias)
                put_scalar(bias, is_double(), c, sum);
            set_scalar(n.p, is_double(), c, scale);
            set_scalar(n.q, is_double(), c, -scale * inverse * slope / count);
            set_scalar(n.r, is_double(), c, scale * (mean * inverse * slope - sum) / count);
        }
    }
}

}  // namespace regrow
