// What a kernel family gets and gives: packed weights, quantised activations, and one table of functions an instruction
// set.
//
// A linear layer is computed in integers. A group is 32 neighbouring columns; in it a weight is
//     scale * (code - offset)      (layouts q8 and q4: the offset is 128 or 8)
//     scale * code - minimum       (layout q4_k)
//     scale * (code - 32)          (layout q6_k, with a scale for each half of the group)
// with an unsigned code, and an activation is scale * value with a value from -127 to 127. The products of a group are
// summed exactly in 32 bits, then the float total of an output takes one group after the other, from the first to the
// last, by the same operations on every instruction set:
//     total = fma(float(dot) * activation_scale, weight_scale, total)
//     total = fma(-activation_sum, minimum, total)                       (layout q4_k)
// q6_k takes each half of a group as the others take a group.
// So the bits of a result depend neither on the instruction set, nor on the threads, nor on the rows beside it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace handlens {

constexpr size_t kGroup = 32;
constexpr size_t kGroupsPerSuperblock = 8;

enum class Layout { q8, q4, q4_k, q6_k };

constexpr bool nibbles(Layout layout) { return layout == Layout::q4 || layout == Layout::q4_k; }

// Rows stand in blocks of `interleave`; the last block is filled up with rows of zeros. Of a group a block holds, for
// every four columns, the codes of these columns of row 0, then of row 1, ...: one register load, four codes a lane.
// The nibbles of q4 hold columns c (low) and c + 16 (high).
//
// Scales lie apart, so that codes stay aligned. q8, q4: per block and group a float16 a row. q4_k: per block and eight
// groups the float16 scales of all rows, their float16 minima, then eight times a byte a row for each: the 6-bit factors.
// q6_k: per block and eight groups the float16 scales, then sixteen times a signed byte a row.
struct Weights {
    Layout layout;
    size_t rows, columns, interleave;
    const uint8_t* codes;
    const uint8_t* scales;

    size_t groups() const { return columns / kGroup; }
    size_t blocks() const { return (rows + interleave - 1) / interleave; }
    // Bytes of one block in a group.
    size_t code_bytes() const { return interleave * (nibbles(layout) ? 16 : 32); }
    // Bytes of one block in all groups.
    size_t scale_bytes() const {
        if (layout == Layout::q8 || layout == Layout::q4) return groups() * interleave * 2;
        return groups() / kGroupsPerSuperblock * interleave * (layout == Layout::q4_k ? 20 : 18);
    }
};

// Rows of activations, quantised; each array is [rows, groups], values [rows, columns].
struct Activations {
    size_t rows, groups;
    int8_t* values;
    float* scales;
    int32_t* offsets;  // -8 times the sum of a group's values: where the dot product of q4 starts, a sixteenth of q8's
    int32_t* half_offsets;  // the same for each half of a group: [rows, groups, 2]
    float* sums;       // scale times the sum of a group's values: what a minimum is multiplied with
};

struct Kernels {
    const char* name;
    size_t interleave;
    // Quantises one row of x.
    void (*quantize)(const float* x, const Activations& into, size_t row);
    // out[row, r] for all rows of x and the rows r of the weights' blocks first to last; out has weights.rows columns.
    void (*multiply)(const Weights& weights, const Activations& x, size_t first, size_t last, float* out);
    // What the machine can do at most, for benchmarks: each does `rounds` rounds of independent operations on registers
    // and gives their number, a multiplication and its addition counting as two.
    double (*integer_work)(size_t rounds);
    double (*float_work)(size_t rounds);
};

extern const Kernels kScalar;
#ifdef HANDLENS_X86
extern const Kernels kAvx2;
extern const Kernels kAvx512Vnni;
#endif

}  // namespace handlens
