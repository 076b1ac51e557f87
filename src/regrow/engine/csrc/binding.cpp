// The Python module regrow.compaction._engine: records in, pointers (as integers) across, no torch anywhere.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <stdexcept>

#include "plan.hpp"
#include "selection.hpp"

namespace nb = nanobind;
using namespace regrow;

namespace {

using Pair = std::pair<int, int>;

std::vector<std::string> variants() {
    std::vector<std::string> names;
    for (const Variant* v : runnable_variants())
        names.push_back(v->name);
    return names;
}

}  // namespace

NB_MODULE(_engine, m) {
    nb::set_leak_warnings(false);  // plans that live in caches until the interpreter ends are no leaks
    m.doc() = "Kernels and plans of truly sparse training; use regrow.engine.compiled_program.";
    m.def("variants", &variants, "Instruction sets that this CPU runs, fastest first.");
    m.def(
        "select",
        [](uint64_t scores, uint64_t among, size_t size, size_t count, uint64_t to) {
            select((const float*)scores, (const uint8_t*)among, size, count, (uint8_t*)to);
        },
        nb::call_guard<nb::gil_scoped_release>());
    m.def("positions", [](uint64_t mask, size_t size, uint64_t to) {
        return positions((const uint8_t*)mask, size, (int32_t*)to);
    });
    m.def("expand", [](uint64_t columns, size_t count, uint64_t starts, size_t rows, size_t width, uint64_t to) {
        expand((const int16_t*)columns, count, (const int64_t*)starts, rows, width, (int32_t*)to);
    });
    m.def("overlap", [](uint64_t a, size_t count_a, uint64_t b, size_t count_b, uint64_t in_b, uint64_t in_a) {
        overlap((const int32_t*)a, count_a, (const int32_t*)b, count_b, (uint8_t*)in_b, (uint8_t*)in_a);
    });
    m.def("variant", [] { return std::string(best_variant()->name); });

    nb::class_<Run>(m, "Run").def_prop_ro("bytes", [](const Run& run) {
        size_t bytes = 0;
        for (const auto& arena : run.arenas)
            bytes += arena.second->bytes;
        return bytes;
    });
    nb::class_<Call>(m, "Call")
        .def(nb::init<>())
        .def_rw("borders", &Call::borders)
        .def_rw("values", &Call::values)
        .def_rw("biases", &Call::biases)
        .def_rw("norms", &Call::norms)
        .def_rw("value_gradients", &Call::value_gradients)
        .def_rw("bias_gradients", &Call::bias_gradients)
        .def_rw("norm_gradients", &Call::norm_gradients)
        .def_rw("dense_gradients", &Call::dense_gradients);
    nb::class_<Plan>(m, "Plan")
        .def("__init__",
             [](Plan* plan, const std::string& dtype) {
                 if (dtype != "float32" && dtype != "bfloat16" && dtype != "float64")
                     throw std::invalid_argument("unknown dtype " + dtype);
                 new (plan) Plan(dtype == "float32"    ? Dtype::Float32
                                 : dtype == "bfloat16" ? Dtype::BFloat16
                                                       : Dtype::Float64);
             })
        .def("add_program", &Plan::add_program)
        .def("add_border",
             [](Plan& p, int channels, int height, int width) { return p.add_border({channels, height, width}); })
        .def("add_layer",
             [](Plan& p, int out, int in, Pair kernel, Pair stride, Pair padding, Pair dilation) {
                 return p.add_layer(out, in,
                                    {kernel.first, kernel.second, stride.first, stride.second, padding.first,
                                     padding.second, dilation.first, dilation.second});
             })
        .def("add_tensor",
             [](Plan& p, int program, int slot, int light_slot, int channels, int height, int width, bool flat,
                bool statistics) {
                 return p.add_tensor({program, slot, light_slot, channels, height, width, flat, statistics});
             })
        .def("add_norm", [](Plan& p, int tensor, int channels, double epsilon,
                            double momentum) { return p.add_norm({tensor, channels, epsilon, momentum}); })
        .def("add_view",
             [](Plan& p, Pair first, Pair second, bool relu, double probability) {
                 return p.add_view({{first.first, second.first}, {first.second, second.second}, relu, probability});
             })
        .def("add_gradient",
             [](Plan& p, int value, Pair first, Pair second, int store) {
                 return p.add_gradient({value, {first.first, second.first}, {first.second, second.second}, store});
             })
        .def("add_target", [](Plan& p, int tensor, int add, int gate) { return p.add_target({tensor, add, gate}); })
        .def("add_pool",
             [](Plan& p, bool maximum, Pair kernel, Pair stride, Pair padding) {
                 return p.add_pool({maximum, kernel.first, kernel.second, stride.first, stride.second, padding.first,
                                    padding.second});
             })
        .def(
            "add_step",
            [](Plan& p, int program, int kind, int view, int gradient, int target, int layer, int bias, int border,
               int pool) { p.add_step(program, {Kind(kind), view, gradient, target, layer, bias, border, pool}); },
            nb::arg("program"), nb::arg("kind"), nb::kw_only(), nb::arg("view") = -1, nb::arg("gradient") = -1,
            nb::arg("target") = -1, nb::arg("layer") = -1, nb::arg("bias") = -1, nb::arg("border") = -1,
            nb::arg("pool") = -1)
        .def(
            "set_pattern",
            [](Plan& p, int layer, uint64_t indices, size_t count) {
                p.set_pattern(layer, (const int64_t*)indices, count);
            },
            nb::call_guard<nb::gil_scoped_release>())
        .def("indices", [](const Plan& p, int layer, uint64_t to) { p.indices(layer, (int64_t*)to); })
        .def("pattern_count", &Plan::pattern_count)
        .def("pattern_memory", &Plan::pattern_memory)
        .def("arena_bytes", &Plan::arena_bytes)
        .def("steps", &Plan::steps)
        .def("forward", &Plan::forward, nb::call_guard<nb::gil_scoped_release>())
        .def("backward", &Plan::backward, nb::call_guard<nb::gil_scoped_release>());
}
