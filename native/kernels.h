// What a kernel family gets and gives: packed weights, quantised activations, and one table of functions an instruction
// set.
//
// A linear layer with quantised weights is computed in integers. A group is 32 neighbouring columns (the last is filled up
// with zeros); some layouts have other scales for each half of it, 16 columns. In a group, or half, a weight is
//     scale * (code - offset)
//     scale * code - minimum
//     code - offset                    (layout q8_row; the scale is the row's)
// with an unsigned code, and an activation is scale * value with a value from -127 to 127. The products of a group or half
// are summed exactly in 32 bits, then the float total of an output takes one after the other, from the first to the last,
// by the same operations on every instruction set:
//     total = fma(float(dot) * activation_scale, weight_scale, total)
//     total = fma(-activation_sum, minimum, total)                       (where there is a minimum)
// q8_row sums the products of a run, two groups whose activations share their scale (the last run may have one), does
//     total = fma(float(dot), activation_scale, total)
// and at the end total * weight_scale. With float weights (f32, f16, bf16) the total of an output takes one column after
// the other:
//     total = fma(x, weight, total)
// So the bits of a result depend neither on the instruction set, nor on the threads, nor on the rows beside it. Two tables
// are not bound to the first, and only some processors have them: Bf16Linear and Bf16Attention.
#pragma once

#include <cstddef>
#include <cstdint>

// Functions here are compiled into each file by themselves. Of a copy a file, the linker would keep any one, and that of a
// file for a newer processor may hold instructions that this one lacks.
#ifdef _MSC_VER
#define HANDLENS_INLINE __forceinline
#else
#define HANDLENS_INLINE inline __attribute__((always_inline))
#endif

namespace handlens {

// The least multiple that holds the count.
constexpr HANDLENS_INLINE size_t up_to(size_t count, size_t multiple) { return (count + multiple - 1) / multiple * multiple; }

constexpr size_t kGroup = 32;
constexpr size_t kGroupsPerSuperblock = 8;

constexpr HANDLENS_INLINE size_t groups_of(size_t columns) { return (columns + kGroup - 1) / kGroup; }

enum class Layout { q8, q4, q5, q4_1, q5_1, q2_k, q4_k, q5_k, q6_k, levels, levels_k, levels_half, q8_row, f32, f16, bf16, bf16_tiles };

// How codes are stored: a byte each, or four bits each and the rest of five or six bits behind them. The four bits of
// `levels` choose from a table of sixteen bytes that the weights bring.
enum class Codes { bytes, four, five, six, levels };
// How scales are stored, see below.
enum class Scales { none, row, half, pair, minima, factors };

struct Form {
    Codes codes;
    Scales scales;
    size_t parts;  // of a group that have their own scales
    int offset;
};

constexpr HANDLENS_INLINE Form form(Layout layout) {
    switch (layout) {
        case Layout::q8: return {Codes::bytes, Scales::half, 1, 128};
        case Layout::q4: return {Codes::four, Scales::half, 1, 8};
        case Layout::q5: return {Codes::five, Scales::half, 1, 16};
        case Layout::q4_k: return {Codes::four, Scales::minima, 1, 0};
        case Layout::q5_k: return {Codes::five, Scales::minima, 1, 0};
        case Layout::q6_k: return {Codes::six, Scales::factors, 2, 32};
        case Layout::q4_1: return {Codes::four, Scales::pair, 1, 0};
        case Layout::q5_1: return {Codes::five, Scales::pair, 1, 0};
        case Layout::q2_k: return {Codes::four, Scales::minima, 2, 0};
        case Layout::levels: return {Codes::levels, Scales::half, 1, 128};
        case Layout::levels_k: return {Codes::levels, Scales::factors, 1, 128};
        case Layout::levels_half: return {Codes::levels, Scales::factors, 2, 128};
        case Layout::q8_row: return {Codes::bytes, Scales::row, 1, 128};
        default: return {Codes::bytes, Scales::none, 1, 0};
    }
}

// Groups whose activations share a scale.
constexpr HANDLENS_INLINE size_t run_of(Layout layout) { return layout == Layout::q8_row ? 2 : 1; }

constexpr HANDLENS_INLINE bool is_float(Layout layout) { return form(layout).scales == Scales::none; }
constexpr HANDLENS_INLINE bool has_minimum(Layout layout) {
    return form(layout).scales == Scales::pair || form(layout).scales == Scales::minima;
}

// Bytes of a row's codes in a group.
constexpr HANDLENS_INLINE size_t row_code_bytes(Layout layout) {
    switch (form(layout).codes) {
        case Codes::bytes: return 32;
        case Codes::five: return 20;
        case Codes::six: return 24;
        default: return 16;
    }
}

// Bytes of a row's scales in a run of groups, and how many groups a run has.
constexpr HANDLENS_INLINE size_t row_scale_bytes(Layout layout) {
    const size_t factors = kGroupsPerSuperblock * form(layout).parts;
    switch (form(layout).scales) {
        case Scales::half: return 2;
        case Scales::pair: return 4;
        case Scales::minima: return 4 + 2 * factors;
        case Scales::factors: return 4 + factors;
        default: return 4;
    }
}
constexpr HANDLENS_INLINE size_t scale_groups(Layout layout) {
    return form(layout).scales == Scales::minima || form(layout).scales == Scales::factors ? kGroupsPerSuperblock : 1;
}

// Rows stand in blocks of `interleave`; the last block is filled up with rows of zeros. Of a group a block holds, for
// every four columns (a step, 0 to 7), the codes of these columns of row 0, then of row 1, ...: one register load, four
// codes a lane. Codes of less than eight bits hold their four lowest in 16 * interleave bytes: column c in the low half of
// a byte, c + 16 in the high half. Behind them come the upper bits, four bytes a row: the lowest bit of byte k is that of
// column k, the next that of column 4 + k, and so on through eight steps (five bits), or two bits each through four steps,
// first for columns 0 to 15 and in further four bytes a row for the rest (six bits).
//
// Scales lie apart, so that codes stay aligned; of each there is one a row, the rows of a block side by side.
//     half      a group: a float16
//     pair      a group: the float16 scales, then the float16 minima
//     minima    eight groups: float16 scales, float16 minima, then for each part a byte that the scale is multiplied with,
//               then for each part a byte that the minimum is multiplied with
//     factors   eight groups: float32 scales, then for each part a signed byte that the scale is multiplied with
//     row       once: a float32
//
// Float weights stand in blocks of sixteen rows on every instruction set; a block holds, for every column, the numbers of
// all rows, or in bf16_tiles, for every two columns, both numbers of all rows; there the last group is filled up with zeros.
struct Weights {
    Layout layout;
    size_t rows, columns, interleave;
    const uint8_t* codes;
    const uint8_t* scales;
    const uint8_t* levels;  // the sixteen codes that four bits choose from, or null

    HANDLENS_INLINE size_t groups() const { return groups_of(columns); }
    HANDLENS_INLINE size_t blocks() const { return (rows + interleave - 1) / interleave; }
    // Bytes of the codes or numbers of one block in all columns.
    HANDLENS_INLINE size_t block_bytes() const {
        if (layout == Layout::bf16_tiles) return groups() * kGroup * interleave * 2;
        if (is_float(layout)) return columns * interleave * (layout == Layout::f32 ? 4 : 2);
        return groups() * interleave * row_code_bytes(layout);
    }
    // Bytes of the scales of one block in all groups.
    HANDLENS_INLINE size_t scale_bytes() const {
        if (is_float(layout)) return 0;
        const size_t runs = layout == Layout::q8_row ? 1 : groups() / scale_groups(layout);
        return runs * interleave * row_scale_bytes(layout);
    }
};

// Rows of activations, quantised; each array is [rows, groups], values [rows, groups, 32]. Where a run of groups shares
// a scale, what belongs to the run stands in the place of its first group.
struct Activations {
    size_t rows, columns, groups;
    size_t run;  // 1 or 2
    int8_t* values;
    float* scales;
    int32_t* offsets;  // -8 times the sum of a group's values: where the dot product starts for an offset of 8
    int32_t* half_offsets;  // the same for each half of a group: [rows, groups, 2]
    float* sums;       // scale times the sum of a group's values: what a minimum is multiplied with

    // The same of a part of the group.
    HANDLENS_INLINE float sum(size_t at, size_t parts, size_t part) const {
        return parts == 1 ? sums[at] : static_cast<float>(half_offsets[2 * at + part] / -8) * scales[at];
    }
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
    const float* q;
    const void *keys, *values;
    size_t key_head, key_step, value_head, value_step;
    float* out;
    bool half = false;  // keys and values are float16, otherwise float32

    // How many keys a query sees.
    HANDLENS_INLINE size_t visible(size_t query) const { return causal ? key_count - queries + query + 1 : key_count; }
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

// Softmax attention whose products are those of bfloat16 numbers: keys and values are packed once a call, then attended to.
// All memory lies at multiples of 64 bytes.
struct Bf16Attention {
    size_t (*packed_bytes)(const Attention& attention);
    size_t (*tasks_to_pack)(const Attention& attention);
    void (*pack)(const Attention& attention, size_t task, uint8_t* packed);
    size_t (*tasks)(const Attention& attention);
    // Bytes of scratch memory that a task needs.
    size_t (*scratch)(const Attention& attention);
    void (*attend)(const Attention& attention, size_t task, const uint8_t* packed, uint8_t* scratch);
};

// Linear layers whose weights and activations are rounded to bfloat16 (see amx_linear.cpp): those of the layout bf16_tiles,
// and those with quantised weights in groups.
struct Bf16Linear {
    size_t rows, blocks;  // in one task, at most: rows of x whose number is a multiple of 32, and an even number of blocks
    // Bytes of so many rows of x, rounded; they lie at a multiple of 64 bytes.
    size_t (*nbytes)(size_t rows, size_t columns);
    // Rounds one row of x into its place among them.
    void (*round)(const float* x, size_t columns, uint16_t* into, size_t row);
    // As Kernels::multiply; rows begin at a multiple of 32 and blocks at an even one.
    void (*multiply)(const Weights& weights, const uint16_t* x, Range rows, Range blocks, const Output& out);
    // The same, but the results take a step without a second input and are rounded for the next layer.
    void (*multiply_between)(const Weights& weights, const uint16_t* x, Range rows, Range blocks, const float* bias,
                             const Step& step, uint16_t* into);
    // The same with the swiglu of two layers' results. The weights have one shape and layout, and half as many blocks make
    // a task.
    void (*multiply_gated)(const Weights& gate, const Weights& up, const uint16_t* x, Range rows, Range blocks,
                           uint16_t* into);
};

struct Kernels {
    const char* name;
    size_t interleave;
    size_t rows;  // of x in one task: enough to be worth the asking, few enough to stay in the second cache
    bool has_dots;  // whether an instruction sums products of bytes: without, int8 is hardly faster than float32
    const FloatKernels* floats;
    // out[row, r] for these rows of x and the rows r of these blocks of the weights.
    void (*multiply)(const Weights& weights, const Activations& x, Range rows, Range blocks, const Output& out);
    // What the machine can do at most, for benchmarks: each does `rounds` rounds of independent operations on registers
    // and gives their number, a multiplication and its addition counting as two; the first one on bfloat16, where the
    // kernels multiply it, else on int8.
    double (*fastest_work)(size_t rounds);
    double (*float_work)(size_t rounds);
    // Null where there are none; there are both or neither.
    const Bf16Linear* bf16_linear = nullptr;
    const Bf16Attention* bf16_attention = nullptr;

    // Whether weights of a layout are multiplied in bfloat16: quantised ones where that is wanted.
    HANDLENS_INLINE bool in_bf16(Layout layout, bool wanted) const {
        return layout == Layout::bf16_tiles || (wanted && bf16_linear && !is_float(layout) && run_of(layout) == 1);
    }
};

extern const FloatKernels kFloatScalar;
extern const Kernels kScalar;
#ifdef HANDLENS_X86
extern const FloatKernels kFloatAvx2;
extern const FloatKernels kFloatAvx512;
extern const Kernels kAvx2;
#ifdef HANDLENS_AVXVNNI
extern const Kernels kAvxVnni;
#endif
extern const Kernels kAvx512Vnni;
#ifdef HANDLENS_AMX
extern const Bf16Attention kAmxAttention;
extern const Kernels kAmx;
#endif
#endif
#ifdef HANDLENS_ARM
extern const FloatKernels kFloatNeon;
extern const Kernels kNeon;
extern const Kernels kNeonDotprod;
extern const Kernels kNeonI8mm;
#endif

}  // namespace handlens
