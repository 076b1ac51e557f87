// A region of a network as lists of fused steps, and the memory they run in.
//
// The lowering (lowering.py) writes a plan once: tensors, views, targets and steps. `forward` runs program 0 or the
// inference program on a batch and returns a Run, which holds all that backward needs; `backward` runs another program
// on the same Run. Nothing here depends on the instruction set; the kernels come through a table.
#pragma once
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "pattern.hpp"
#include "tasks.hpp"

namespace regrow {

const Variant* best_variant();  // the fastest that this CPU runs; REGROW_ISA names another
std::vector<const Variant*> runnable_variants();

// Page-aligned memory, on huge pages where the system has them.
class Arena {
  public:
    explicit Arena(size_t bytes);
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    char* data;
    size_t bytes;
};

struct TensorRecord {
    int program, slot, light_slot, channels, height, width;
    bool flat, statistics;
};
struct ViewRecord {
    int tensor[2], norm[2];  // -1: absent
    bool relu;
    double probability;
};
struct GradientRecord {  // the sum of `source[i]`, each behind batch norm `norm[i]` or as it is
    int value, source[2], norm[2], store;
};
struct TargetRecord {
    int tensor, add, gate;  // add: a tensor; gate: a view
};
struct NormRecord {
    int tensor, channels;
    double epsilon, momentum;
};
struct PoolRecord {
    bool maximum;
    int kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;
};
enum class Kind : int {
    Import,
    Export,
    ExportGradient,
    Convolution,
    ConvolutionBackward,
    Materialise,
    Gradient,
    Pool,
    PoolBackward,
    Flatten,
    FlattenBackward
};
struct Step {
    Kind kind;
    int view, gradient, target, layer, bias, border, pool;
};
struct BorderRecord {
    int channels, height, width;
};

struct Layer {
    int out, in;
    Geometry geometry;
    Pattern pattern;
};

// What one norm computed in one forward pass; scalars are float or double as the plan's arithmetic is.
struct NormState {
    std::vector<double> mean, inverse_deviation, sums;  // sums: backward, [channels][2]
    std::vector<double> scale, shift, p, q, r;          // raw storage, read by kernels
    bool batch;
};

struct Run {
    int batch = 0, threads = 1, image_tiles = 0, group = 1;
    bool training = false;
    bool light = false;  // nothing is kept for backward: tensors share the light slots
    uint64_t seed = 0;
    std::map<int, std::shared_ptr<Arena>> arenas;
    std::vector<NormState> norms;
    Arena* masks = nullptr;
    const char *image_mask = nullptr, *flat_mask = nullptr;
    std::shared_ptr<Arena> mask_memory;
};

// Pointers of one call, all to contiguous memory of the plan's scalar type.
struct Call {
    std::vector<uint64_t> borders, values, biases;
    std::vector<uint64_t> norms;  // weight, bias, running mean, running variance of each norm; 0: absent
    std::vector<uint64_t> value_gradients, bias_gradients, norm_gradients;  // 0: not wanted
    std::vector<uint64_t> dense_gradients;                                  // of each layer; 0: not wanted
};

class Plan {
  public:
    explicit Plan(Dtype dtype);

    int add_program(), add_border(BorderRecord);
    int add_layer(int out, int in, Geometry);
    int add_tensor(TensorRecord), add_view(ViewRecord), add_norm(NormRecord), add_gradient(GradientRecord);
    int add_target(TargetRecord), add_pool(PoolRecord);
    void add_step(int program, Step);

    void set_pattern(int layer, const int64_t* indices, size_t count);
    void indices(int layer, int64_t* to) const { layers_.at(layer).pattern.indices(to); }
    size_t pattern_count(int layer) const { return layers_.at(layer).pattern.count(); }
    size_t pattern_memory(int layer) const { return layers_.at(layer).pattern.memory(); }
    size_t arena_bytes(int program, int batch, bool save) const;

    // Images `share` at a time where they do not depend on each other: in evaluation, with nothing saved.
    std::shared_ptr<Run> forward(int program, int batch, int share, int threads, bool training, bool save,
                                 uint64_t seed, const Call&);
    void backward(Run&, int program, int first, int last, const Call&);
    size_t steps(int program) const { return programs_.at(program).size(); }

  private:
    struct Scratch {
        char* data = nullptr;
        size_t bytes = 0;
        ~Scratch() { free(data); }
        char* get(size_t wanted);
    };
    struct ThreadMemory {
        Scratch slots[8], statistics, weights, biases;
    };
    struct Context;  // one call in progress

    int lanes() const { return dtype_ == Dtype::Float32 ? 16 : dtype_ == Dtype::BFloat16 ? 32 : 8; }
    bool is_double() const { return dtype_ == Dtype::Float64; }
    WeightKind weight_kind() const;
    int ring_line() const { return dtype_ == Dtype::BFloat16 && !variant_->bfloat16_weights ? 2 * kLine : kLine; }
    Shape shape(const TensorRecord&, const Run&) const;
    std::vector<size_t> slot_offsets(int program, const Run&) const;
    void set_sizes(Run&, int batch, int threads) const;
    std::shared_ptr<Arena> take_arena(int program, const Run&);
    struct ForwardPack;
    void run_forward(int program, Run&, ForwardPack*, const Call&);
    void run_step(Context&, const Step&);
    bool takes_tiles(const Pattern&, const TensorRecord&) const;
    void run_convolution(Context&, const Step&);
    void run_convolution_backward(Context&, const Step&);
    void workers(Context&, const Step&, int tiles, int channels, const std::function<void(Worker&)>&);
    void finish_statistics(Context&, int tensor);
    void finish_gate(Context&, const ViewRecord&);
    void check(const Call&, bool backward) const;
    void start_norm(Context&, int norm, const double* sums);

    struct PixelLayout;  // few images, in pixels.cpp
    bool takes_pixels(const Run&, int program) const;
    void lay_out_pixels(int program, int batch);
    void forward_pixels(Context&, int program);

    Dtype dtype_;
    const Variant* variant_;
    const Kernels* kernels_;
    std::vector<Layer> layers_;
    std::vector<TensorRecord> tensors_;
    std::vector<ViewRecord> views_;
    std::vector<NormRecord> norms_;
    std::vector<GradientRecord> gradients_;
    std::vector<TargetRecord> targets_;
    std::vector<PoolRecord> pools_;
    std::vector<BorderRecord> borders_;
    std::vector<std::vector<Step>> programs_;
    size_t biases_ = 0;

    std::mutex mutex_;  // one call at a time
    std::vector<std::unique_ptr<ThreadMemory>> memory_;
    std::vector<std::shared_ptr<Arena>> spare_;  // arenas that no Run holds any more are taken again
    std::shared_ptr<PixelLayout> pixels_;
    struct ForwardPack {  // a layer's weights for its forward step; in parts, those of the first serve the others
        int pitch = 0;    // of the ring that they were packed for
        Packed rows;
        PackedTiles tiles;
    };
    ForwardPack packed_forward_;
    Packed packed_weight_, packed_transposed_;
    PackedTiles packed_tiles_, packed_transposed_tiles_;
    std::vector<double> statistics_;
};

// Ring and tap geometry, in convolution_plan.cpp.
struct ConvolutionShapes {
    RingShape input_ring, gradient_ring;
    int gradient_first, gradient_last;
    TapTable input_taps, gradient_taps;
    std::vector<int> class_of;
    int input_block, gradient_block;
    bool product;
};
ConvolutionShapes convolution_shapes(const Layer&, size_t alive, int ring_line, const Shape& in, const Shape& out);

}  // namespace regrow
