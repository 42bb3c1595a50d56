// What a kernel family gets and gives: packed weights, quantised activations, and one table of functions an instruction
// set.
//
// A linear layer with quantised weights is computed in integers. A group is 32 neighbouring columns (the last is filled up
// with zeros); in it a weight is
//     scale * (code - offset)      (layouts q8 and q4: the offset is 128 or 8)
//     code - 128                   (layout q8_row; the scale is the row's)
//     scale * code - minimum       (layout q4_k)
//     scale * (code - 32)          (layout q6_k, with a scale for each half of the group)
// with an unsigned code, and an activation is scale * value with a value from -127 to 127. The products of a group are
// summed exactly in 32 bits, then the float total of an output takes one group after the other, from the first to the
// last, by the same operations on every instruction set:
//     total = fma(float(dot) * activation_scale, weight_scale, total)
//     total = fma(-activation_sum, minimum, total)                       (layout q4_k)
// q6_k takes each half of a group as the others take a group. q8_row does
//     total = fma(float(dot), activation_scale, total)
// and at the end total * weight_scale. With float weights (f32, f16, bf16) the total of an output takes one column after
// the other:
//     total = fma(x, weight, total)
// So the bits of a result depend neither on the instruction set, nor on the threads, nor on the rows beside it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace handlens {

constexpr size_t kGroup = 32;
constexpr size_t kGroupsPerSuperblock = 8;

enum class Layout { q8, q4, q4_k, q6_k, q8_row, f32, f16, bf16 };

constexpr bool is_float(Layout layout) {
    return layout == Layout::f32 || layout == Layout::f16 || layout == Layout::bf16;
}
constexpr bool nibbles(Layout layout) { return layout == Layout::q4 || layout == Layout::q4_k; }

// Rows stand in blocks of `interleave`; the last block is filled up with rows of zeros. Of a group a block holds, for
// every four columns, the codes of these columns of row 0, then of row 1, ...: one register load, four codes a lane.
// The nibbles of q4 hold columns c (low) and c + 16 (high).
//
// Scales lie apart, so that codes stay aligned. q8, q4: per block and group a float16 a row. q4_k: per block and eight
// groups the float16 scales of all rows, their float16 minima, then eight times a byte a row for each: the 6-bit factors.
// q6_k: per block and eight groups the float16 scales, then sixteen times a signed byte a row. q8_row: per block a float32
// a row.
//
// Float weights stand in blocks of sixteen rows on every instruction set; a block holds, for every column, the numbers of
// all rows.
struct Weights {
    Layout layout;
    size_t rows, columns, interleave;
    const uint8_t* codes;
    const uint8_t* scales;

    size_t groups() const { return (columns + kGroup - 1) / kGroup; }
    size_t blocks() const { return (rows + interleave - 1) / interleave; }
    // Bytes of one block in a group.
    size_t code_bytes() const { return interleave * (nibbles(layout) ? 16 : 32); }
    // Bytes of the codes or numbers of one block in all columns.
    size_t block_bytes() const {
        if (is_float(layout)) return columns * interleave * (layout == Layout::f32 ? 4 : 2);
        return groups() * code_bytes();
    }
    // Bytes of the scales of one block in all groups.
    size_t scale_bytes() const {
        if (is_float(layout)) return 0;
        if (layout == Layout::q8_row) return interleave * 4;
        if (layout == Layout::q8 || layout == Layout::q4) return groups() * interleave * 2;
        return groups() / kGroupsPerSuperblock * interleave * (layout == Layout::q4_k ? 20 : 18);
    }
};

// Rows of activations, quantised; each array is [rows, groups], values [rows, groups, 32].
struct Activations {
    size_t rows, columns, groups;
    int8_t* values;
    float* scales;
    int32_t* offsets;  // -8 times the sum of a group's values: where the dot product of q4 starts, a sixteenth of q8's
    int32_t* half_offsets;  // the same for each half of a group: [rows, groups, 2]
    float* sums;       // scale times the sum of a group's values: what a minimum is multiplied with
};

// From the first to before the last.
struct Range {
    size_t first, last;
};

// Where the results [rows of x, rows of the weights] go, and what is added to each on its way: a bias a column, then a
// residual of the results' shape; null for nothing. `data` and `residual` may be the same.
struct Output {
    float* data;
    const float* bias;
    const float* residual;
};

// What happens to the rows of x before a linear layer reads them. `swiglu` is silu(x) times a second input.
struct Step {
    enum Kind { none, layer_norm, rms_norm, gelu_tanh, gelu, swiglu } kind = none;
    const float* weight = nullptr;  // of the norms
    const float* bias = nullptr;
    float eps = 0;
};

// q and out are [queries, heads, width]; keys and values lie `head` numbers from head to head and `step` from position to
// position. Each key-value head is shared by heads / kv_heads neighbouring heads. When causal, the queries are the last
// positions among the keys, and none sees those behind it.
struct Attention {
    size_t queries, heads, kv_heads, key_count, width;
    bool causal;
    const float *q, *keys, *values;
    size_t key_head, key_step, value_head, value_step;
    float* out;

    // How many keys a query sees.
    size_t visible(size_t query) const { return causal ? key_count - queries + query + 1 : key_count; }
    // Queries of one task: few enough that their scores stay in the cache.
    size_t block() const;
    size_t tasks() const;
    // Floats of scratch memory that a task needs.
    size_t scratch() const;
};

struct FloatKernels {
    // Quantises one row of x.
    void (*quantize)(const float* x, const Activations& into, size_t row);
    // As Kernels::multiply, for float weights.
    void (*multiply)(const Weights& weights, const float* x, Range rows, Range blocks, const Output& out);
    // One row of x after a step; `second` is the second input's row, where the step has one.
    void (*prepare)(const Step& step, const float* x, const float* second, size_t columns, float* out);
    // The outputs of one task.
    void (*attend)(const Attention& attention, size_t task, float* scratch);
    // The heads of one position, turned by the cosines and sines [width / 2]; `out` may be x.
    void (*turn)(const float* x, const float* cos, const float* sin, size_t heads, size_t width, float* out);
};

struct Kernels {
    const char* name;
    size_t interleave;
    const FloatKernels* floats;
    // out[row, r] for these rows of x and the rows r of these blocks of the weights.
    void (*multiply)(const Weights& weights, const Activations& x, Range rows, Range blocks, const Output& out);
    // What the machine can do at most, for benchmarks: each does `rounds` rounds of independent operations on registers
    // and gives their number, a multiplication and its addition counting as two.
    double (*integer_work)(size_t rounds);
    double (*float_work)(size_t rounds);
};

extern const FloatKernels kFloatScalar;
extern const Kernels kScalar;
#ifdef HANDLENS_X86
extern const FloatKernels kFloatAvx2;
extern const FloatKernels kFloatAvx512;
extern const Kernels kAvx2;
extern const Kernels kAvx512Vnni;
#endif
#ifdef HANDLENS_ARM
extern const FloatKernels kFloatNeon;
extern const Kernels kNeon;
extern const Kernels kNeonDotprod;
extern const Kernels kNeonI8mm;
#endif

}  // namespace handlens
