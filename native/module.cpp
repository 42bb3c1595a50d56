// What Python sees: everything is checked here once, so the kernels trust what they get.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <string>

#include "dispatch.h"
#include "pack.h"
#include "pool.h"
#include "quantizers.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace handlens {
namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Blocks = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using BlocksOut = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Blocks of weights in one task: enough to be worth the asking, few enough to share out evenly and to stop soon.
constexpr size_t kBlocksFewRows = 8, kBlocksManyRows = 2, kFewRows = 4;
constexpr size_t kRowsToQuantize = 8;

struct Free {
    void operator()(uint8_t* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
};
using Aligned = std::unique_ptr<uint8_t[], Free>;

Aligned allocate(size_t bytes) { return Aligned(new (std::align_val_t(64)) uint8_t[bytes]); }

// Weights in the layout of one instruction set.
struct Packed {
    const Kernels* kernels;
    Weights weights;
    Aligned codes, scales;
    size_t nbytes;
};

// True once a signal handler raised (Ctrl-C); only Python's main thread ever finds one.
bool interrupted() {
    nb::gil_scoped_acquire gil;
    return PyErr_CheckSignals() != 0;
}

const Kernels& kernels_named(const std::string& name) {
    std::string names;
    for (const Kernels* kernels : usable_kernels()) {
        if (name == kernels->name) return *kernels;
        names += std::string(names.empty() ? "" : ", ") + kernels->name;
    }
    throw nb::value_error(("this processor has no kernels called '" + name + "'; it has " + names).c_str());
}

Packed pack(const std::string& type, const Blocks& data, size_t columns, const std::string& name) {
    const Kernels& kernels = kernels_named(name);
    const Source* source = find_source(type);
    if (!source) throw nb::value_error(("no kernel takes weights of type " + type).c_str());
    const size_t rows = data.shape(0);
    if (columns == 0 || columns % source->weights || data.shape(1) != columns / source->weights * source->nbytes)
        throw nb::value_error((type + " rows of " + std::to_string(data.shape(1)) + " bytes do not hold " +
                               std::to_string(columns) + " columns").c_str());
    Packed packed{&kernels, {source->layout, rows, columns, kernels.interleave, nullptr, nullptr}, {}, {}, 0};
    Weights& w = packed.weights;
    const size_t code_bytes = w.blocks() * w.groups() * w.code_bytes(), scale_bytes = w.blocks() * w.scale_bytes();
    packed.codes = allocate(code_bytes);
    packed.scales = allocate(scale_bytes);
    packed.nbytes = code_bytes + scale_bytes;
    w.codes = packed.codes.get();
    w.scales = packed.scales.get();
    bool whole;
    {
        nb::gil_scoped_release release;
        Pool::Lease pool;
        whole = pool.run(
            w.blocks(),
            [&](size_t block) {
                pack_block(*source, w, data.data(), block, packed.codes.get(), packed.scales.get());
            },
            interrupted);
    }
    if (!whole) throw nb::python_error();
    return packed;
}

// Activations in scratch memory.
Activations lay_out(Pool::Lease& pool, size_t rows, size_t columns) {
    const size_t groups = columns / kGroup, count = rows * groups;
    uint8_t* memory = pool.scratch(count * (kGroup + 20));
    return {rows,
            groups,
            reinterpret_cast<int8_t*>(memory),
            reinterpret_cast<float*>(memory + count * kGroup),
            reinterpret_cast<int32_t*>(memory + count * (kGroup + 4)),
            reinterpret_cast<int32_t*>(memory + count * (kGroup + 8)),
            reinterpret_cast<float*>(memory + count * (kGroup + 16))};
}

void check(const Matrix& x, const std::vector<Packed*>& weights, const std::vector<Output>& outs) {
    if (weights.empty() || weights.size() != outs.size()) throw nb::value_error("one output for each weight is wanted");
    const auto misaligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % alignof(float) != 0; };
    if (misaligned(x.data())) throw nb::value_error("x does not lie at a multiple of 4 bytes");
    for (size_t i = 0; i < weights.size(); i++) {
        const Weights& w = weights[i]->weights;
        if (x.shape(1) != w.columns)
            throw nb::value_error(("x has " + std::to_string(x.shape(1)) + " columns, the weight has " +
                                   std::to_string(w.columns)).c_str());
        if (outs[i].shape(0) != x.shape(0) || outs[i].shape(1) != w.rows)
            throw nb::value_error(("the output is [" + std::to_string(outs[i].shape(0)) + ", " +
                                   std::to_string(outs[i].shape(1)) + "], but [" + std::to_string(x.shape(0)) + ", " +
                                   std::to_string(w.rows) + "] is wanted").c_str());
        if (misaligned(outs[i].data())) throw nb::value_error("the output does not lie at a multiple of 4 bytes");
        if (weights[i]->kernels != weights[0]->kernels)
            throw nb::value_error("weights of one call are packed for one instruction set");
    }
}

// outs[i] = x times the transpose of weights[i]; x is quantised once for all.
void linears(const Matrix& x, const std::vector<Packed*>& weights, const std::vector<Output>& outs) {
    check(x, weights, outs);
    const size_t rows = x.shape(0), columns = x.shape(1);
    if (rows == 0) return;
    const Kernels& kernels = *weights[0]->kernels;
    const size_t step = rows <= kFewRows ? kBlocksFewRows : kBlocksManyRows;
    std::vector<size_t> ends;  // of each weight's tasks
    for (const Packed* packed : weights)
        ends.push_back((ends.empty() ? 0 : ends.back()) + (packed->weights.blocks() + step - 1) / step);
    std::vector<float*> results;
    for (const Output& out : outs) results.push_back(out.data());
    const float* input = x.data();
    bool whole;
    {
        nb::gil_scoped_release release;
        Pool::Lease pool;
        const Activations quantized = lay_out(pool, rows, columns);
        const auto quantize = [&](size_t task) {
            const size_t end = std::min(rows, (task + 1) * kRowsToQuantize);
            for (size_t row = task * kRowsToQuantize; row < end; row++)
                kernels.quantize(input + row * columns, quantized, row);
        };
        const auto multiply = [&](size_t task) {
            size_t i = 0;
            while (task >= ends[i]) i++;
            const size_t first = (task - (i ? ends[i - 1] : 0)) * step;
            const Weights& w = weights[i]->weights;
            kernels.multiply(w, quantized, first, std::min(first + step, w.blocks()), results[i]);
        };
        whole = pool.run((rows + kRowsToQuantize - 1) / kRowsToQuantize, quantize, interrupted) &&
                pool.run(ends.back(), multiply, interrupted);
    }
    if (!whole) throw nb::python_error();
}

// Numbers of rows in `data` as blocks in `out`; gives the largest magnitude among them.
float quantize(const std::string& type, const Blocks& data, const std::string& plain_name, size_t columns,
               const std::optional<Vector>& importance, const BlocksOut& out, const std::string& isa) {
    kernels_named(isa);
    const Quantizer* quantizer = nullptr;
    for (const Quantizer& other : quantizers(isa))
        if (type == other.type) quantizer = &other;
    if (!quantizer) throw nb::value_error(("no kernel writes weights of type " + type).c_str());
    const bool is_f32 = plain_name == "F32", is_f16 = plain_name == "F16";
    if (!is_f32 && !is_f16 && plain_name != "BF16") throw nb::value_error("F32, F16 or BF16 numbers are wanted");
    const Plain plain = is_f32 ? Plain::f32 : is_f16 ? Plain::f16 : Plain::bf16;
    const size_t rows = data.shape(0), width = columns / quantizer->weights;
    if (columns == 0 || columns % quantizer->weights || data.shape(1) != columns * (is_f32 ? 4 : 2) ||
        out.shape(0) != rows || out.shape(1) != width * quantizer->nbytes)
        throw nb::value_error("rows of whole blocks, and room for as many, are wanted");
    if (importance && importance->shape(0) != columns) throw nb::value_error("one importance a column is wanted");
    const size_t blocks = rows * width;
    std::atomic<float> largest{0.0f};
    bool whole;
    {
        nb::gil_scoped_release release;
        Pool::Lease pool;
        whole = pool.run(
            (blocks + kBlocksToWrite - 1) / kBlocksToWrite,
            [&](size_t task) {
                const size_t first = task * kBlocksToWrite, last = std::min(blocks, first + kBlocksToWrite);
                const float magnitude =
                    write_blocks(*quantizer, plain, data.data(), importance ? importance->data() : nullptr, columns,
                                 first, last, out.data());
                // Not a number is larger than everything and stays.
                for (float seen = largest; !(magnitude <= seen) && seen == seen;)
                    if (largest.compare_exchange_weak(seen, magnitude)) break;
            },
            interrupted);
    }
    if (!whole) throw nb::python_error();
    return largest;
}

// Runs work(0) ... work(count - 1), which give how many units they did; gives the units a second of all threads.
double rate(size_t count, const std::function<double(size_t)>& work) {
    std::vector<double> done(count);
    bool whole;
    double seconds;
    {
        nb::gil_scoped_release release;
        Pool::Lease pool;
        const auto start = std::chrono::steady_clock::now();
        whole = pool.run(count, [&](size_t task) { done[task] = work(task); }, interrupted);
        seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    if (!whole) throw nb::python_error();
    return std::accumulate(done.begin(), done.end(), 0.0) / seconds;
}

// Work on registers, in as many tasks as share out evenly even if something else takes a core for a while.
double arithmetic_rate(double (*work)(size_t), size_t rounds) {
    const size_t count = 32 * Pool::get().threads();
    return rate(count, [&](size_t) { return work(rounds / count + 1); });
}

double read_rate(const Blocks& memory) {
    constexpr size_t kShare = 1 << 17;  // words of a task: 1 MiB
    const size_t words = memory.size() / 8;
    const auto* data = reinterpret_cast<const uint64_t*>(memory.data());
    if (reinterpret_cast<uintptr_t>(data) % 8) throw nb::value_error("the memory does not lie at a multiple of 8 bytes");
    return rate((words + kShare - 1) / kShare, [&](size_t task) {
        const size_t end = std::min(words, (task + 1) * kShare);
        uint64_t sum = 0;
        for (size_t i = task * kShare; i < end; i++) sum += data[i];
        volatile uint64_t kept = sum;
        (void)kept;
        return static_cast<double>((end - task * kShare) * 8);
    });
}

void set_threads(size_t count) {
    if (count < 1 || count > 1024) throw nb::value_error("1 to 1024 threads are wanted");
    nb::gil_scoped_release release;
    Pool::Lease().set_threads(count);
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "The kernels of handlens.cpu.ops, which is the way to call them.";
    nb::class_<Packed>(m, "Packed", "Weights in the layout of one instruction set.")
        .def_ro("nbytes", &Packed::nbytes)
        .def_prop_ro("shape", [](const Packed& p) { return nb::make_tuple(p.weights.rows, p.weights.columns); })
        .def_prop_ro("isa", [](const Packed& p) { return p.kernels->name; });
    m.def("pack", &pack, "type"_a, "data"_a.noconvert(), "columns"_a, "isa"_a,
          "GGUF blocks [rows, bytes of a row] packed for an instruction set.");
    m.def("linears", &linears, "x"_a.noconvert(), "weights"_a, "outs"_a.noconvert(),
          "Writes x [n, columns] times the transpose of each weight into outs [n, rows].");
    m.def("quantize", &quantize, "type"_a, "data"_a.noconvert(), "plain"_a, "columns"_a, "importance"_a.none(),
          "out"_a.noconvert(), "isa"_a,
          "Writes rows of F32, F16 or BF16 numbers as GGUF blocks into out; gives their largest magnitude.");
    m.def("types", [] {
        std::vector<std::string> names;
        for (const Source& source : sources()) names.emplace_back(source.type);
        return names;
    }, "The block types that `pack` takes.");
    m.def("isas", [] {
        std::vector<std::string> names;
        for (const Kernels* kernels : usable_kernels()) names.push_back(kernels->name);
        return names;
    }, "The instruction sets with kernels that this processor has, the fastest first.");
    m.def("integer_rate", [](const std::string& isa, size_t rounds) {
        return arithmetic_rate(kernels_named(isa).integer_work, rounds);
    }, "isa"_a, "rounds"_a, "Integer operations a second that all threads do together, in `rounds` rounds of a loop.");
    m.def("float_rate", [](const std::string& isa, size_t rounds) {
        return arithmetic_rate(kernels_named(isa).float_work, rounds);
    }, "isa"_a, "rounds"_a, "Float operations a second that all threads do together, in `rounds` rounds of a loop.");
    m.def("read_rate", &read_rate, "memory"_a.noconvert(), "Bytes a second that all threads read of some memory.");
    m.def("threads", [] { return Pool::get().threads(); }, "How many threads compute.");
    m.def("set_threads", &set_threads, "count"_a, "Sets how many threads compute, the caller's included.");
}

}  // namespace handlens
