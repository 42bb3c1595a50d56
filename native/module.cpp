// What Python sees: everything is checked here once, so the kernels trust what they get.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <string>

#include "dispatch.h"
#include "layers.h"
#include "memory.h"
#include "pack.h"
#include "pool.h"
#include "quantizers.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace handlens {
namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Heads = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
// float32 or float16.
using Cached = nb::ndarray<nb::ro, nb::ndim<3>, nb::device::cpu>;
using OutMatrix = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using HeadsOut = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Blocks = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using BlocksOut = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Memory = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Rows in a block of float weights (see kernels.h).
constexpr size_t kFloatRows = 16;

// Weights in the layout of one instruction set, codes first. They are filled row by row, or lie in memory that Python has.
struct Packed {
    const Kernels* kernels;
    const Source* source;
    Weights weights;
    size_t scales_at, nbytes;
    std::shared_ptr<uint8_t[]> owned;
    std::optional<Memory> given;
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

// The layout in which numbers of a source are packed: `as` is "" for the source's own, "int8" or "bf16".
Layout layout_named(const std::string& as, const Source& source, const Kernels& kernels) {
    if (!as.empty() && as != "int8" && as != "bf16")
        throw nb::value_error(("weights are packed as int8 or bf16, not '" + as + "'").c_str());
    if (as == "bf16" && !kernels.bf16_linear)
        throw nb::value_error((std::string(kernels.name) + " multiplies no bf16 on this processor").c_str());
    const Layout layout = as == "int8" ? Layout::q8_row : as == "bf16" ? Layout::bf16_tiles : source.layout;
    if (!packs_as(source, layout))
        throw nb::value_error((std::string(source.type) + " is quantised; it is packed as it is").c_str());
    return layout;
}

// Without memory yet.
Packed make_packed(const std::string& type, size_t rows, size_t columns, const std::string& isa, const std::string& as) {
    const Kernels& kernels = kernels_named(isa);
    const Source* source = find_source(type);
    if (!source) throw nb::value_error(("no kernel takes weights of type " + type).c_str());
    const Layout layout = layout_named(as, *source, kernels);
    constexpr size_t kMost = size_t{1} << 31;
    if (columns == 0 || columns % source->weights || columns > kMost || rows > kMost)
        throw nb::value_error((type + " rows have no " + std::to_string(columns) + " columns").c_str());
    const size_t interleave = is_float(layout) ? kFloatRows : kernels.interleave;
    const uint8_t* levels = source->levels ? source->levels->data() : nullptr;
    Packed packed{&kernels, source, {layout, rows, columns, interleave, nullptr, nullptr, levels}, 0, 0, {}, {}};
    Weights& w = packed.weights;
    packed.scales_at = up_to(w.blocks() * w.block_bytes(), kAlignment);
    packed.nbytes = packed.scales_at + w.blocks() * w.scale_bytes();
    return packed;
}

Packed packed_in(Packed packed, std::optional<Memory> memory) {
    if (memory && (memory->shape(0) != packed.nbytes || reinterpret_cast<uintptr_t>(memory->data()) % kAlignment))
        throw nb::value_error(("packed " + std::string(packed.source->type) + " takes " + std::to_string(packed.nbytes) +
                               " bytes that begin at a multiple of 64; " + std::to_string(memory->shape(0)) +
                               " were given").c_str());
    if (!memory) packed.owned = allocate_shared(packed.nbytes);
    packed.weights.codes = memory ? memory->data() : packed.owned.get();
    packed.weights.scales = packed.weights.codes + packed.scales_at;
    packed.given = std::move(memory);
    return packed;
}

// The rows of a file that a call is about, checked: they go to the packed rows from `first` on.
struct Rows {
    const Packed& packed;
    const uint8_t* data;
    size_t first, count, row_bytes;
    std::vector<uint8_t> places;  // see pack.h

    size_t blocks() const { return (count + packed.weights.interleave - 1) / packed.weights.interleave; }
    // Packs block `block` of these rows.
    void pack(size_t block, uint8_t* codes, uint8_t* scales) const {
        const size_t row = block * packed.weights.interleave;
        pack_block(*packed.source, packed.weights, data + row * row_bytes, std::min(count - row, packed.weights.interleave),
                   places.data(), codes, scales);
    }
};

Rows check_rows(const Packed& packed, const Blocks& data, size_t first, const std::optional<Blocks>& grid) {
    const Source& source = *packed.source;
    const Weights& w = packed.weights;
    Rows rows{packed, data.data(), first, data.shape(0), w.columns / source.weights * source.nbytes, {}};
    if (data.shape(1) != rows.row_bytes)
        throw nb::value_error((std::string(source.type) + " rows of " + std::to_string(data.shape(1)) +
                               " bytes do not hold " + std::to_string(w.columns) + " columns").c_str());
    const size_t end = first + rows.count;
    if (first % w.interleave || first > w.rows || rows.count > w.rows - first || (rows.count % w.interleave && end != w.rows))
        throw nb::value_error(("rows " + std::to_string(first) + " to " + std::to_string(end) + " of " +
                               std::to_string(w.rows) + " are no whole blocks of " + std::to_string(w.interleave)).c_str());
    if (source.points) {
        if (!grid || grid->shape(0) != source.points || grid->shape(1) != source.point_columns)
            throw nb::value_error((std::string(source.type) + " needs a grid of " + std::to_string(source.points) +
                                   " points").c_str());
        rows.places = places_of(source, {grid->data(), grid->size()});
        if (rows.places.empty())
            throw nb::value_error(("a grid of " + std::string(source.type) + " has other magnitudes").c_str());
    }
    return rows;
}

// Packs some rows of the file.
void fill(Packed& packed, const Blocks& data, size_t first, const std::optional<Blocks>& grid) {
    if (!packed.owned) throw nb::value_error("weights in memory that was given are not filled");
    const Rows rows = check_rows(packed, data, first, grid);
    const Weights& w = packed.weights;
    uint8_t *codes = packed.owned.get(), *scales = codes + packed.scales_at;
    bool whole;
    {
        nb::gil_scoped_release release;
        Pool::Lease pool;
        whole = pool.run(
            rows.blocks(),
            [&](size_t block) {
                const size_t at = first / w.interleave + block;
                rows.pack(block, codes + at * w.block_bytes(), scales + at * w.scale_bytes());
            },
            interrupted);
    }
    if (!whole) throw nb::python_error();
}

// Copies weights that lie in memory that was given to memory of their own. Other threads may compute with them meanwhile.
void settle(Packed& packed) {
    if (packed.owned) return;
    const std::shared_ptr<uint8_t[]> own = allocate_shared(packed.nbytes);
    nb::gil_scoped_release release;
    std::copy_n(packed.given->data(), packed.nbytes, own.get());
    Pool::Lease lease;  // nobody computes as long as it is held
    packed.weights.codes = own.get();
    packed.weights.scales = own.get() + packed.scales_at;
    packed.owned = own;
}

// Whether some rows of the file would be packed to what is there.
bool holds(const Packed& packed, const Blocks& data, size_t first, const std::optional<Blocks>& grid) {
    const Rows rows = check_rows(packed, data, first, grid);
    const Weights& w = packed.weights;
    const size_t code_bytes = w.block_bytes(), scale_bytes = w.scale_bytes();
    std::vector<uint8_t> memory(code_bytes + scale_bytes);
    uint8_t *codes = memory.data(), *scales = codes + code_bytes;
    nb::gil_scoped_release release;
    for (size_t block = 0; block < rows.blocks(); block++) {
        rows.pack(block, codes, scales);
        const size_t at = first / w.interleave + block;
        if (!std::equal(codes, scales, w.codes + at * code_bytes) ||
            !std::equal(scales, scales + scale_bytes, w.scales + at * scale_bytes))
            return false;
    }
    return true;
}

std::string size(size_t rows, size_t columns) { return "[" + std::to_string(rows) + ", " + std::to_string(columns) + "]"; }

void check_alignment(const void* data, const char* what) {
    if (reinterpret_cast<uintptr_t>(data) % alignof(float))
        throw nb::value_error((std::string(what) + " does not lie at a multiple of 4 bytes").c_str());
}

template <class Array>
void check_matrix(const Array& array, size_t rows, size_t columns, const char* what) {
    if (array.shape(0) != rows || array.shape(1) != columns)
        throw nb::value_error((std::string(what) + " is " + size(array.shape(0), array.shape(1)) + ", but " +
                               size(rows, columns) + " is wanted").c_str());
    check_alignment(array.data(), what);
}

void check_vector(const Vector& vector, size_t count, const char* what) {
    if (vector.shape(0) != count)
        throw nb::value_error((std::string(what) + " has " + std::to_string(vector.shape(0)) + " numbers, but " +
                               std::to_string(count) + " are wanted").c_str());
    check_alignment(vector.data(), what);
}

// Rows of weights that are packed as the file has them.
void rows_of(const Packed& packed, const Ids& ids, const OutMatrix& out) {
    const Weights& w = packed.weights;
    if (w.layout == Layout::q8_row || w.layout == Layout::bf16_tiles)
        throw nb::value_error("weights that became int8 or bf16 no longer have the file's rows");
    check_matrix(out, ids.shape(0), w.columns, "the output");
    for (size_t i = 0; i < ids.shape(0); i++)
        if (ids.data()[i] < 0 || static_cast<size_t>(ids.data()[i]) >= w.rows)
            throw nb::value_error(("there is no row " + std::to_string(ids.data()[i]) + " of " + std::to_string(w.rows)).c_str());
    nb::gil_scoped_release release;
    Pool::Lease pool(Pool::Lease::Kind::among_others);  // or the weights could move
    for (size_t i = 0; i < ids.shape(0); i++) unpack_row(w, ids.data()[i], out.data() + i * w.columns);
}

// Runs jobs one after the other on all threads with the interpreter free; they are false as soon as one was interrupted.
template <class Jobs>
void compute(const Jobs& jobs) {
    bool whole;
    {
        nb::gil_scoped_release release;
        const std::function<bool()> stop = interrupted;
        Pool::Lease pool(Pool::Lease::Kind::among_others);
        whole = jobs(Work{pool, stop});
    }
    if (!whole) throw nb::python_error();
}

// A step before a linear layer, as Python gives it: its numbers are alive as long as the arrays are.
struct PreparedBy {
    Step step;
    std::optional<Vector> weight, bias;
    std::optional<Matrix> second;
};

PreparedBy make_step(const std::string& kind, std::optional<Vector> weight, std::optional<Vector> bias, float eps,
                     std::optional<Matrix> second) {
    static constexpr std::pair<const char*, Step::Kind> kKinds[] = {
        {"none", Step::none}, {"layer_norm", Step::layer_norm}, {"rms_norm", Step::rms_norm},
        {"gelu_tanh", Step::gelu_tanh}, {"gelu", Step::gelu}, {"swiglu", Step::swiglu}};
    PreparedBy made{{}, std::move(weight), std::move(bias), std::move(second)};
    const auto* found = std::find_if(std::begin(kKinds), std::end(kKinds), [&](auto& row) { return kind == row.first; });
    if (found == std::end(kKinds)) throw nb::value_error(("there is no step called '" + kind + "'").c_str());
    made.step.kind = found->second;
    const bool norm = made.step.kind == Step::layer_norm || made.step.kind == Step::rms_norm;
    if (made.weight.has_value() != norm || made.bias.has_value() != (made.step.kind == Step::layer_norm) ||
        made.second.has_value() != (made.step.kind == Step::swiglu))
        throw nb::value_error((kind + " does not have these arguments").c_str());
    made.step.weight = norm ? made.weight->data() : nullptr;
    made.step.bias = made.bias ? made.bias->data() : nullptr;
    made.step.eps = eps;
    return made;
}

void check_step(const PreparedBy& by, const Matrix& x) {
    if (by.weight) check_vector(*by.weight, x.shape(1), "the weight of the norm");
    if (by.bias) check_vector(*by.bias, x.shape(1), "the bias of the norm");
    if (by.second) check_matrix(*by.second, x.shape(0), x.shape(1), "the second input");
}

// The rows of x after a step.
void prepare(const Matrix& x, const OutMatrix& out, const PreparedBy& by, const std::string& isa) {
    check_alignment(x.data(), "x");
    check_step(by, x);
    check_matrix(out, x.shape(0), x.shape(1), "the output");
    const FloatKernels& kernels = *kernels_named(isa).floats;
    if (by.step.kind == Step::none) throw nb::value_error("there is no step to take");
    compute([&](const Work& work) {
        return run_step(work, kernels, by.step, x.data(), by.second ? by.second->data() : nullptr, x.shape(0),
                                 x.shape(1), out.data());
    });
}

Linear linear_of(const Packed& packed, const std::optional<Vector>& bias = {}) {
    if (bias) check_vector(*bias, packed.weights.rows, "the bias");
    return {packed.kernels, &packed.weights, bias ? bias->data() : nullptr};
}

// The rows of x, and a step that Python gave for them.
Input input_of(const Matrix& x, const PreparedBy* by, bool bf16 = false) {
    check_alignment(x.data(), "x");
    if (by) check_step(*by, x);
    return {x.data(), x.shape(0), by ? by->step : Step{}, by && by->second ? by->second->data() : nullptr, bf16};
}

// outs[i] = x after a step, times the transpose of weights[i], plus biases[i], plus the residual. x is prepared and
// quantised once for all.
void linears(const Matrix& x, const std::vector<Packed*>& weights, const std::vector<OutMatrix>& outs,
             const std::vector<std::optional<Vector>>& biases, const std::optional<Matrix>& residual,
             const PreparedBy* by, bool bf16) {
    if (weights.empty() || weights.size() != outs.size() || weights.size() != biases.size())
        throw nb::value_error("one output and one bias or None for each weight are wanted");
    if (residual && weights.size() != 1) throw nb::value_error("a residual goes with one weight");
    const size_t rows = x.shape(0);
    std::vector<Linear> layers;
    std::vector<Output> results;
    for (size_t i = 0; i < weights.size(); i++) {
        const Weights& w = weights[i]->weights;
        if (x.shape(1) != w.columns)
            throw nb::value_error(("x has " + std::to_string(x.shape(1)) + " columns, the weight has " +
                                   std::to_string(w.columns)).c_str());
        check_matrix(outs[i], rows, w.rows, "the output");
        if (residual) check_matrix(*residual, rows, w.rows, "the residual");
        if (weights[i]->kernels != weights[0]->kernels)
            throw nb::value_error("weights of one call are packed for one instruction set");
        layers.push_back(linear_of(*weights[i], biases[i]));
        results.push_back({outs[i].data(), nullptr, residual ? residual->data() : nullptr});
    }
    const Input input = input_of(x, by, bf16);
    if (rows == 0) return;
    compute([&](const Work& work) {
        return run_linears(work, layers, results, input, work.pool.scratch(scratch_of_linears(layers, input)));
    });
}

// A linear layer in bf16 inside a call that does more than one.
Linear check_inner(const Packed& packed, const std::optional<Vector>& bias, size_t rows, size_t columns,
                   const Packed& first) {
    const Weights& w = packed.weights;
    if (!packed.kernels->in_bf16(w.layout, true) || packed.kernels != first.kernels)
        throw nb::value_error("all weights of one call are multiplied in bf16, and for one instruction set");
    if (w.rows != rows || w.columns != columns)
        throw nb::value_error(("a weight is " + size(w.rows, w.columns) + ", but " + size(rows, columns) + " is wanted").c_str());
    return linear_of(packed, bias);
}

// out = x plus what two linear layers make of it after a step, with another step between them.
void feed_forward(const Matrix& x, const OutMatrix& out, const PreparedBy& by, const Packed& up,
                  const std::optional<Vector>& up_bias, const PreparedBy& between, const Packed& down,
                  const std::optional<Vector>& down_bias) {
    const size_t rows = x.shape(0), columns = x.shape(1), wide = up.weights.rows;
    const Linear first = check_inner(up, up_bias, wide, columns, up), second = check_inner(down, down_bias, columns, wide, up);
    const Step::Kind kind = between.step.kind;
    if (kind != Step::gelu && kind != Step::gelu_tanh) throw nb::value_error("gelu or gelu_tanh goes between the layers");
    check_matrix(out, rows, columns, "the output");
    const Input input = input_of(x, &by);
    if (rows == 0) return;
    compute([&](const Work& work) {
        return run_feed_forward(work, input, first, between.step, second, out.data());
    });
}

// out = x plus what three linear layers make of it after a step: down of silu(gate) * up.
void gated_feed_forward(const Matrix& x, const OutMatrix& out, const PreparedBy& by, const Packed& gate, const Packed& up,
                        const Packed& down) {
    const size_t rows = x.shape(0), columns = x.shape(1), wide = gate.weights.rows;
    const Linear first = check_inner(gate, {}, wide, columns, gate), second = check_inner(up, {}, wide, columns, gate);
    const Linear last = check_inner(down, {}, columns, wide, gate);
    if (gate.weights.layout != up.weights.layout) throw nb::value_error("gate and up have one layout");
    check_matrix(out, rows, columns, "the output");
    const Input input = input_of(x, &by);
    if (rows == 0) return;
    compute([&](const Work& work) { return run_gated_feed_forward(work, input, first, second, last, out.data()); });
}

// out = x plus what attention among its rows makes of it after a step. Weights are those of queries, keys, values and of
// what is read; they are bf16.
void self_attention(const Matrix& x, const OutMatrix& out, const PreparedBy& by, const std::vector<Packed*>& weights,
                    const std::vector<std::optional<Vector>>& biases, size_t heads) {
    if (weights.size() != 4 || biases.size() != 4) throw nb::value_error("four weights and four biases are wanted");
    const size_t rows = x.shape(0), columns = x.shape(1);
    if (heads == 0 || columns == 0 || columns % heads)
        throw nb::value_error((std::to_string(columns) + " columns are not shared by " + std::to_string(heads) + " heads").c_str());
    std::array<Linear, 4> layers;
    for (size_t i = 0; i < 4; i++) layers[i] = check_inner(*weights[i], biases[i], columns, columns, *weights[0]);
    check_matrix(out, rows, columns, "the output");
    const Input input = input_of(x, &by);
    if (rows == 0) return;
    compute([&](const Work& work) { return run_self_attention(work, input, layers, heads, out.data()); });
}

// The layers of a decoder, and what makes logits of their results. What they are made of is kept alive.
struct Decoder {
    std::vector<DecoderLayer> layers;
    DecoderShape shape;
    size_t columns;
    const float* norm;
    Linear output;
    std::vector<nb::object> owners;
};

// `layers` holds of each layer its matrices of queries, keys, values, of what is read, gate, up and down, and its two norms.
Decoder make_decoder(const std::vector<std::pair<std::vector<nb::object>, std::vector<Vector>>>& layers,
                     const Vector& output_norm, const nb::object& output, size_t heads, size_t kv_heads, size_t head, float eps) {
    if (layers.empty() || heads == 0 || kv_heads == 0 || heads % kv_heads || head == 0 || head % 2)
        throw nb::value_error("layers, heads that share key-value heads evenly, and an even width of a head are wanted");
    const Linear last = linear_of(*nb::cast<Packed*>(output));
    Decoder made{{}, {heads, kv_heads, head, eps}, last.weights->columns, output_norm.data(), last,
                 {nb::cast(output_norm), output}};
    check_vector(output_norm, made.columns, "the weight of a norm");
    for (const auto& [matrices, norms] : layers) {
        if (matrices.size() != 7 || norms.size() != 2) throw nb::value_error("seven matrices and two norms a layer are wanted");
        std::array<Linear, 7> linear;
        for (size_t i = 0; i < 7; i++) {
            linear[i] = linear_of(*nb::cast<Packed*>(matrices[i]));
            if (linear[i].kernels != last.kernels)
                throw nb::value_error("weights of one decoder are packed for one instruction set");
            made.owners.push_back(matrices[i]);
        }
        const size_t columns = made.columns, inner = linear[4].weights->rows;
        const std::pair<size_t, size_t> wanted[] = {{heads * head, columns}, {kv_heads * head, columns},
                                                    {kv_heads * head, columns}, {columns, heads * head},
                                                    {inner, columns}, {inner, columns}, {columns, inner}};
        for (size_t i = 0; i < 7; i++)
            if (linear[i].weights->rows != wanted[i].first || linear[i].weights->columns != wanted[i].second)
                throw nb::value_error(("a weight is " + size(linear[i].weights->rows, linear[i].weights->columns) + ", but " +
                                       size(wanted[i].first, wanted[i].second) + " is wanted").c_str());
        for (const Vector& norm : norms) {
            check_vector(norm, columns, "the weight of a norm");
            made.owners.push_back(nb::cast(norm));
        }
        made.layers.push_back({norms[0].data(), norms[1].data(), {linear[0], linear[1], linear[2]}, linear[3], linear[4],
                               linear[5], linear[6]});
    }
    return made;
}

constexpr nb::dlpack::dtype kHalf{static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};

// Writable, float32 or float16.
using CacheMemory = nb::ndarray<nb::ndim<3>, nb::c_contig, nb::device::cpu>;

// The logits of the last rows (`tails`) of each sequence; x is overwritten. Of each sequence there are its rows in this call,
// how many positions came before them, and the arrays of all layers, in `keys` and `values` one sequence behind the other.
void decode(const Decoder& decoder, const OutMatrix& x, const Matrix& cos, const Matrix& sin, const std::vector<size_t>& counts,
            const std::vector<size_t>& lengths, const std::vector<CacheMemory>& keys, const std::vector<CacheMemory>& values,
            const std::vector<size_t>& tails, const OutMatrix& logits, bool bf16) {
    const size_t rows = x.shape(0), layers = decoder.layers.size();
    const auto& shape = decoder.shape;
    check_matrix(x, rows, decoder.columns, "x");
    check_matrix(cos, rows, shape.head / 2, "the cosines");
    check_matrix(sin, rows, shape.head / 2, "the sines");
    if (counts.size() != lengths.size() || counts.size() != tails.size() || keys.size() != counts.size() * layers ||
        values.size() != keys.size() || std::accumulate(counts.begin(), counts.end(), size_t{0}) != rows || keys.empty())
        throw nb::value_error("the rows of all sequences, and the keys and values of all their layers, are wanted");
    for (size_t i = 0; i < counts.size(); i++)
        if (tails[i] > counts[i]) throw nb::value_error("no sequence has more logits than rows");
    check_matrix(logits, std::accumulate(tails.begin(), tails.end(), size_t{0}), decoder.output.weights->rows, "the logits");
    const bool half = keys[0].dtype() == kHalf;
    std::vector<std::vector<CachedRows>> cached(layers);
    for (size_t i = 0; i < keys.size(); i++) {
        const size_t sequence = i / layers, count = counts[sequence], length = lengths[sequence];
        for (const CacheMemory* array : {&keys[i], &values[i]})
            if (array->shape(0) != shape.kv_heads || array->shape(1) < count || array->shape(1) - count < length ||
                array->shape(2) != shape.head ||
                array->shape(1) != keys[i].shape(1) || (half ? array->dtype() != kHalf : array->dtype() != nb::dtype<float>()))
                throw nb::value_error(("keys and values of " + std::to_string(shape.kv_heads) + " heads, at least " +
                                       std::to_string(length + count) + " positions and width " + std::to_string(shape.head) +
                                       " are wanted, all float32 or all float16").c_str());
        cached[i % layers].push_back({count, length, keys[i].shape(1), keys[i].data(), values[i].data()});
    }
    if (rows == 0) return;
    bool whole = true;
    {
        nb::gil_scoped_release release;
        const std::function<bool()> stop = interrupted;
        for (size_t i = 0; i < layers && whole; i++) {
            Pool::Lease pool(Pool::Lease::Kind::among_others);  // one a layer, so that other models get their turn
            whole = run_decoder_layer({pool, stop}, decoder.layers[i], shape, x.data(), rows, cos.data(), sin.data(),
                                      cached[i], half, bf16);
        }
        Pool::Lease pool(Pool::Lease::Kind::among_others);
        whole = whole && run_decoder_end({pool, stop}, decoder.norm, decoder.output, shape, x.data(), cached[0], tails,
                                         logits.data());
    }
    if (!whole) throw nb::python_error();
}

// out = what the queries read of the keys and values [kv_heads, key_count, width], whatever their strides but the last.
void attend(const Heads& q, const Cached& keys, const Cached& values, const HeadsOut& out, bool causal,
            const std::string& isa, bool bf16) {
    const bool half = keys.dtype() == kHalf;
    if (keys.dtype() != values.dtype() || (!half && keys.dtype() != nb::dtype<float>()))
        throw nb::type_error("keys and values are both float32 or both float16");
    const Attention a{q.shape(0), q.shape(1), keys.shape(0), keys.shape(1), q.shape(2), causal,
                      q.data(), keys.data(), values.data(), size_t(keys.stride(0)), size_t(keys.stride(1)),
                      size_t(values.stride(0)), size_t(values.stride(1)), out.data(), half};
    for (size_t i = 0; i < 3; i++)
        if (keys.shape(i) != values.shape(i) || q.shape(i) != out.shape(i))
            throw nb::value_error("keys and values, and queries and output, have one shape each");
    if (keys.shape(2) != a.width || a.width == 0 || a.kv_heads == 0 || a.heads == 0 || a.heads % a.kv_heads)
        throw nb::value_error((std::to_string(a.heads) + " heads of width " + std::to_string(a.width) + " cannot read " +
                               std::to_string(a.kv_heads) + " key-value heads of width " +
                               std::to_string(keys.shape(2))).c_str());
    if (a.key_count == 0 || (causal && a.key_count < a.queries))
        throw nb::value_error((std::to_string(a.queries) + " queries cannot read " + std::to_string(a.key_count) +
                               " keys").c_str());
    for (const Cached* array : {&keys, &values})
        if (array->stride(2) != 1 || array->stride(0) < 0 || array->stride(1) < 0)
            throw nb::value_error("the numbers of a head lie one behind the other");
    for (const void* data : {static_cast<const void*>(a.q), static_cast<const void*>(a.out)}) check_alignment(data, "an array");
    for (const void* data : {a.keys, a.values})
        if (!half) check_alignment(data, "an array");
    if (bf16) {
        const Bf16Attention* attention = kernels_named(isa).bf16_attention;
        if (!attention) throw nb::value_error((isa + " has no attention in bf16").c_str());
        return compute([&](const Work& work) { return run_bf16_attention(work, *attention, a); });
    }
    const FloatKernels& kernels = *kernels_named(isa).floats;
    compute([&](const Work& work) { return run_attention(work, kernels, a); });
}

// out = the heads x turned to their positions.
void rope(const Heads& x, const Matrix& cos, const Matrix& sin, const HeadsOut& out, const std::string& isa) {
    const size_t n = x.shape(0), heads = x.shape(1), width = x.shape(2);
    if (width % 2) throw nb::value_error("heads of an odd width have no pairs to turn");
    for (size_t i = 0; i < 3; i++)
        if (x.shape(i) != out.shape(i)) throw nb::value_error("the output has another shape than the heads");
    check_matrix(cos, n, width / 2, "the cosines");
    check_matrix(sin, n, width / 2, "the sines");
    check_alignment(x.data(), "x");
    check_alignment(out.data(), "the output");
    const FloatKernels& kernels = *kernels_named(isa).floats;
    compute([&](const Work& work) {
        return for_rows(work, n, [&](size_t at) {
            kernels.turn(x.data() + at * heads * width, cos.data() + at * width / 2, sin.data() + at * width / 2, heads,
                         width, out.data() + at * heads * width);
        });
    });
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

// Memory is fetched ahead, as the kernels fetch weights: left to the processor alone it came a seventh slower than they read.
double read_rate(const Blocks& memory) {
    constexpr size_t kShare = 1 << 17;  // words of a task: 1 MiB
    constexpr size_t kLine = 8, kAhead = 256;
    const size_t words = memory.size() / 8;
    const auto* data = reinterpret_cast<const uint64_t*>(memory.data());
    if (reinterpret_cast<uintptr_t>(data) % 8) throw nb::value_error("the memory does not lie at a multiple of 8 bytes");
    return rate((words + kShare - 1) / kShare, [&](size_t task) {
        const size_t end = std::min(words, (task + 1) * kShare);
        uint64_t sum = 0;
        size_t i = task * kShare;
        for (; i + kLine <= end; i += kLine) {
            __builtin_prefetch(data + i + kAhead);
            for (size_t k = 0; k < kLine; k++) sum += data[i + k];
        }
        for (; i < end; i++) sum += data[i];
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
    nb::class_<Packed>(m, "Packed", "Weights in the layout of one instruction set; float numbers as int8 or bf16 if "
                                    "wanted. They are filled, or lie in `memory` that held such weights.")
        .def("__init__",
             [](Packed* self, const std::string& type, size_t rows, size_t columns, const std::string& isa,
                const std::string& as, std::optional<Memory> memory) {
                 new (self) Packed(packed_in(make_packed(type, rows, columns, isa, as), std::move(memory)));
             },
             "type"_a, "rows"_a, "columns"_a, "isa"_a, "as_"_a = "", "memory"_a.noconvert().none() = nb::none())
        .def("fill", &fill, "data"_a.noconvert(), "first"_a = 0, "grid"_a.noconvert().none() = nb::none(),
             "Packs rows of a GGUF tensor [rows, bytes of a row], which begin or end with a block of rows.")
        .def("settle", &settle,
             "Moves weights that lie in `memory` to memory of their own, from which they come faster: a mapped file has small "
             "pages. Others may compute with them meanwhile.")
        .def("holds", &holds, "data"_a.noconvert(), "first"_a, "grid"_a.noconvert().none() = nb::none(),
             "Whether such rows would be packed to what is there.")
        .def("rows", &rows_of, "ids"_a.noconvert(), "out"_a.noconvert(), "Writes some rows [n, columns] as the file has them.")
        .def_ro("nbytes", &Packed::nbytes)
        .def_prop_ro("memory", [](Packed& p) { return nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(
                                                   p.weights.codes, {p.nbytes}, nb::find(p)); },
                     "All bytes, which `memory` takes.")
        .def_prop_ro("shape", [](const Packed& p) { return nb::make_tuple(p.weights.rows, p.weights.columns); })
        .def("in_bf16", [](const Packed& p, bool wanted) { return p.kernels->in_bf16(p.weights.layout, wanted); },
             "wanted"_a = false, "Whether they are multiplied in bf16; quantised ones are where it is wanted, if they can be.")
        .def_prop_ro("isa", [](const Packed& p) { return p.kernels->name; });
    m.def("packed_bytes", [](const std::string& type, size_t rows, size_t columns, const std::string& isa, const std::string& as) {
        return make_packed(type, rows, columns, isa, as).nbytes;
    }, "type"_a, "rows"_a, "columns"_a, "isa"_a, "as_"_a = "", "How many bytes such weights take.");
    m.attr("LAYOUT_VERSION") = kLayoutVersion;
    nb::class_<PreparedBy>(m, "Step", "What happens to the rows of x before linear layers read them.")
        .def("__init__",
             [](PreparedBy* self, const std::string& kind, std::optional<Vector> weight, std::optional<Vector> bias,
                float eps, std::optional<Matrix> second) {
                 new (self) PreparedBy(make_step(kind, std::move(weight), std::move(bias), eps, std::move(second)));
             },
             "kind"_a, "weight"_a.noconvert().none() = nb::none(), "bias"_a.noconvert().none() = nb::none(), "eps"_a = 0.0f,
             "second"_a.noconvert().none() = nb::none());
    m.def("linears", &linears, "x"_a.noconvert(), "weights"_a, "outs"_a.noconvert(), "biases"_a.noconvert(),
          "residual"_a.noconvert().none() = nb::none(), "step"_a.none() = nb::none(), "bf16"_a = false,
          "Writes x [n, columns] after a step, times the transpose of each weight, plus its bias and the residual, into "
          "outs [n, rows]. With bf16 quantised weights are multiplied in it, where there are kernels for that.");
    m.def("feed_forward", &feed_forward, "x"_a.noconvert(), "out"_a.noconvert(), "step"_a, "up"_a,
          "up_bias"_a.noconvert().none(), "between"_a, "down"_a, "down_bias"_a.noconvert().none(),
          "Writes x [n, columns], plus what two layers of bf16 weights make of it after a step, with another step between "
          "them, into out, which may be x.");
    m.def("gated_feed_forward", &gated_feed_forward, "x"_a.noconvert(), "out"_a.noconvert(), "step"_a, "gate"_a, "up"_a,
          "down"_a,
          "Writes x [n, columns], plus what three layers in bf16 make of it after a step, down of silu(gate) * up, into out, "
          "which may be x.");
    m.def("self_attention", &self_attention, "x"_a.noconvert(), "out"_a.noconvert(), "step"_a, "weights"_a,
          "biases"_a.noconvert(), "heads"_a,
          "Writes x [n, columns], plus what attention among its rows makes of it after a step, into out, which may be x. The "
          "weights, which are bf16, make queries, keys, values and the result.");
    nb::class_<Decoder>(m, "Decoder", "The layers of a decoder.")
        .def("__init__",
             [](Decoder* self, const std::vector<std::pair<std::vector<nb::object>, std::vector<Vector>>>& layers,
                const Vector& norm, const nb::object& output, size_t heads, size_t kv_heads, size_t head, float eps) {
                 new (self) Decoder(make_decoder(layers, norm, output, heads, kv_heads, head, eps));
             },
             "layers"_a.noconvert(), "norm"_a.noconvert(), "output"_a, "heads"_a, "kv_heads"_a, "head"_a, "eps"_a)
        .def("forward", &decode, "x"_a.noconvert(), "cos"_a.noconvert(), "sin"_a.noconvert(), "counts"_a, "lengths"_a,
             "keys"_a.noconvert(), "values"_a.noconvert(), "tails"_a, "logits"_a.noconvert(), "bf16"_a = false,
             "Takes the rows x [n, columns] of some sequences through all layers, in place, and adds their keys and values, "
             "turned by cosines and sines [n, head / 2], behind the first so many positions of the arrays [kv_heads, capacity, "
             "head] of each sequence and layer. Writes the logits of the last rows of each.");
    m.def("prepare", &prepare, "x"_a.noconvert(), "out"_a.noconvert(), "step"_a, "isa"_a, "Writes x after a step.");
    m.def("attend", &attend, "q"_a.noconvert(), "keys"_a.noconvert(), "values"_a.noconvert(), "out"_a.noconvert(),
          "causal"_a, "isa"_a, "bf16"_a = false,
          "Writes what q [n, H, d] reads of keys and values [K, m, d] into out [n, H, d].");
    m.def("multiplies_bf16", [](const std::string& isa) { return kernels_named(isa).bf16_linear != nullptr; },
          "isa"_a, "Whether these kernels multiply bfloat16 weights, and attend in bfloat16.");
    m.def("has_dots", [](const std::string& isa) { return kernels_named(isa).has_dots; }, "isa"_a,
          "Whether an instruction sums products of bytes; without one int8 is hardly faster than float32.");
    m.def("rope", &rope, "x"_a.noconvert(), "cos"_a.noconvert(), "sin"_a.noconvert(), "out"_a.noconvert(), "isa"_a,
          "Writes the heads x [n, H, d], turned by cosines and sines [n, d / 2].");
    m.def("quantize", &quantize, "type"_a, "data"_a.noconvert(), "plain"_a, "columns"_a, "importance"_a.none(),
          "out"_a.noconvert(), "isa"_a,
          "Writes rows of F32, F16 or BF16 numbers as GGUF blocks into out; gives their largest magnitude.");
    m.def("types", [] {
        std::vector<std::string> names;
        for (const Source& source : sources()) names.emplace_back(source.type);
        return names;
    }, "The block types that can be packed.");
    m.def("isas", [] {
        std::vector<std::string> names;
        for (const Kernels* kernels : usable_kernels()) names.push_back(kernels->name);
        return names;
    }, "The instruction sets with kernels that this processor has, the fastest first.");
    m.def("lacking", [] {
        nb::dict sets;
        for (const InstructionSet& set : instruction_sets()) sets[set.kernels->name] = nb::cast(set.lacking);
        return sets;
    }, "All instruction sets with kernels in this binary, the fastest first, each with what the processor lacks for it.");
    m.def("fastest_rate", [](const std::string& isa, size_t rounds) {
        return arithmetic_rate(kernels_named(isa).fastest_work, rounds);
    }, "isa"_a, "rounds"_a, "Operations a second that all threads do together, in `rounds` rounds of a loop, on bfloat16 "
                            "where it is multiplied, else on int8.");
    m.def("float_rate", [](const std::string& isa, size_t rounds) {
        return arithmetic_rate(kernels_named(isa).float_work, rounds);
    }, "isa"_a, "rounds"_a, "Float operations a second that all threads do together, in `rounds` rounds of a loop.");
    m.def("read_rate", &read_rate, "memory"_a.noconvert(), "Bytes a second that all threads read of some memory.");
    m.def("empty", [](size_t rows, size_t columns) {
        struct Memory {
            uint8_t* data;
            size_t bytes;
        };
        const size_t bytes = rows * columns * sizeof(float);
        auto* const memory = new Memory{Recycler::get().take(bytes), bytes};
        const nb::capsule owner(memory, [](void* gone) noexcept {
            const std::unique_ptr<Memory> it(static_cast<Memory*>(gone));
            Recycler::get().hand_in(it->data, it->bytes);
        });
        return nb::ndarray<nb::numpy, float, nb::ndim<2>>(reinterpret_cast<float*>(memory->data), {rows, columns}, owner);
    }, "rows"_a, "columns"_a, "Numbers [rows, columns] that are not set, in memory that is used again.");
    m.def("threads", [] { return Pool::get().threads(); }, "How many threads compute.");
    m.def("set_threads", &set_threads, "count"_a, "Sets how many threads compute, the caller's included.");
}

}  // namespace handlens
