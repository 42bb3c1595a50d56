// NEON: a register holds four columns of four rows. Compiled once for every processor and once each for those with more,
// with other flags; what the compiler may use decides how products are added:
//   dotprod   four products a lane in one instruction
//   i8mm      the products of two rows and two tokens, eight columns long, in one instruction
// They multiply signed bytes, so codes lose their offset first: the dot products start at zero.
#pragma once

#include <arm_neon.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "steps.h"

namespace handlens {
namespace {

constexpr size_t kRows = 4;
#ifdef __ARM_FEATURE_DOTPROD
constexpr int kMaxTokens = 8;  // 8 integer and 8 float totals of the 32 registers, and 4 of codes
#else
constexpr int kMaxTokens = 4;  // products on their way take registers too
#endif

#ifdef __ARM_FEATURE_MATMUL_INT8
constexpr bool kPairs = true;
#else
constexpr bool kPairs = false;
#endif

float32x4_t halves(const uint8_t* at) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(at))); }

uint8x8_t four_bytes(const uint8_t* at) {
    uint32_t word;
    std::memcpy(&word, at, 4);
    return vcreate_u8(word);
}

float32x4_t bytes(const uint8_t* at) { return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four_bytes(at))))); }

float32x4_t signed_bytes(const uint8_t* at) {
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(four_bytes(at))))));
}

// The first `count` of four floats; those behind them are zero.
float32x4_t load_some(const float* at, size_t count) {
    if (count == kRows) return vld1q_f32(at);
    float memory[kRows] = {};
    for (size_t i = 0; i < count; i++) memory[i] = at[i];
    return vld1q_f32(memory);
}

void store_some(float* at, float32x4_t x, size_t count) {
    if (count == kRows) return vst1q_f32(at, x);
    float memory[kRows];
    vst1q_f32(memory, x);
    for (size_t i = 0; i < count; i++) at[i] = memory[i];
}

// Half a group: codes[i] is columns 4 i to 4 i + 3 of four rows, without their offset. `levels` are the table of Codes::levels.
template <Layout L>
void read_codes(const uint8_t* group, int half, uint8x16_t levels, int8x16_t (&codes)[4]) {
    constexpr Form kForm = form(L);
    const uint8x16_t offset = vdupq_n_u8(kForm.offset);
    for (int i = 0; i < 4; i++) {
        uint8x16_t code;
        if constexpr (kForm.codes == Codes::bytes) {
            code = vld1q_u8(group + half * 64 + i * 16);
        } else {
            const uint8x16_t both = vld1q_u8(group + i * 16);
            code = half ? vshrq_n_u8(both, 4) : vandq_u8(both, vdupq_n_u8(15));
        }
        if constexpr (kForm.codes == Codes::levels) code = vqtbl1q_u8(levels, code);
        if constexpr (kForm.codes == Codes::five || kForm.codes == Codes::six) {
            constexpr bool kSix = kForm.codes == Codes::six;
            const uint8x16_t upper = vld1q_u8(group + kRows * (16 + (kSix ? half * 4 : 0)));
            const int8x16_t down = vdupq_n_s8(static_cast<int8_t>(kSix ? -2 * i : -(half * 4 + i)));
            const uint8x16_t bits = vandq_u8(vshlq_u8(upper, down), vdupq_n_u8(kSix ? 3 : 1));
            code = vorrq_u8(code, vshlq_n_u8(bits, 4));
        }
        codes[i] = vreinterpretq_s8_u8(vsubq_u8(code, offset));
    }
}

// Adds the products of four columns with four values of a token, which all rows have in common.
template <int Four>
int32x4_t add_products(int32x4_t total, int8x16_t codes, int8x16_t values) {
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_laneq_s32(total, codes, values, Four);
#else
    const int8x16_t four = vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(values), Four));
    const int16x8_t low = vmull_s8(vget_low_s8(codes), vget_low_s8(four)), high = vmull_high_s8(codes, four);
    return vpadalq_s16(total, vpaddq_s16(low, high));  // a sum of two is at most 2 * 128 * 127, which fits
#endif
}

// Adds the products of half a group for T tokens, whose values lie `next` bytes apart.
template <int T>
inline __attribute__((always_inline)) void add_half(const int8x16_t (&codes)[4], const int8_t* values, size_t next, int32x4_t (&dot)[T]) {
    for (int t = 0; t < T; t++) {
        const int8x16_t of_token = vld1q_s8(values + t * next);
        dot[t] = add_products<0>(dot[t], codes[0], of_token);
        dot[t] = add_products<1>(dot[t], codes[1], of_token);
        dot[t] = add_products<2>(dot[t], codes[2], of_token);
        dot[t] = add_products<3>(dot[t], codes[3], of_token);
    }
}

#ifdef __ARM_FEATURE_MATMUL_INT8
int8x16_t first_of_each(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}
int8x16_t last_of_each(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s32(vzip2q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}

// The same for pairs of tokens: dot[t] and dot[t + 1] are both tokens' products with rows 0 and 1, and with rows 2 and 3.
template <int T>
inline __attribute__((always_inline)) void add_half_of_pairs(const int8x16_t (&codes)[4], const int8_t* values, size_t next,
                                                             int32x4_t (&dot)[T]) {
    const int8x16_t upper[2] = {first_of_each(codes[0], codes[1]), first_of_each(codes[2], codes[3])};
    const int8x16_t lower[2] = {last_of_each(codes[0], codes[1]), last_of_each(codes[2], codes[3])};
    for (int t = 0; t < T; t += 2)
        for (int i = 0; i < 2; i++) {
            const int8x16_t of_pair = vld1q_s8(values + t / 2 * next + i * 16);
            dot[t] = vmmlaq_s32(dot[t], of_pair, upper[i]);
            dot[t + 1] = vmmlaq_s32(dot[t + 1], of_pair, lower[i]);
        }
}

// From pairs to tokens.
template <int T>
void part(int32x4_t (&dot)[T]) {
    for (int t = 0; t < T; t += 2) {
        const int64x2_t upper = vreinterpretq_s64_s32(dot[t]), lower = vreinterpretq_s64_s32(dot[t + 1]);
        dot[t] = vreinterpretq_s32_s64(vzip1q_s64(upper, lower));
        dot[t + 1] = vreinterpretq_s32_s64(vzip2q_s64(upper, lower));
    }
}

// The values of the pairs of tokens from `token` to before `last`, as add_half_of_pairs takes them: of eight columns
// those of the one, then of the other.
const int8_t* pair_up(const Activations& x, size_t token, size_t last) {
    thread_local std::vector<int8_t> memory;
    const size_t columns = x.groups * kGroup;
    memory.resize(std::max(memory.size(), kMaxTokens * columns));
    int8_t* to = memory.data();
    for (; token + 2 <= last; token += 2) {
        const int8_t* from = x.values + token * columns;
        for (size_t c = 0; c < columns; c += 8, to += 16) vst1q_s8(to, vcombine_s8(vld1_s8(from + c), vld1_s8(from + columns + c)));
    }
    return memory.data();
}
#endif

// Adds a group's dot products, or those of half of one, to the totals of T tokens; `first` is the first token's group.
template <Layout L, int T>
void add_scaled(const int32x4_t (&dot)[T], const uint8_t* scales, size_t g, int part, const Activations& x, size_t first,
                float32x4_t (&total)[T]) {
    if constexpr (L == Layout::q8_row) {
        for (int t = 0; t < T; t++)
            total[t] = vfmaq_n_f32(total[t], vcvtq_f32_s32(dot[t]), x.scales[first + t * x.groups]);
        return;
    }
    constexpr Form kForm = form(L);
    float32x4_t scale, minimum;
    const uint8_t* run = scales + g / scale_groups(L) * kRows * row_scale_bytes(L);
    const size_t factor = (g % kGroupsPerSuperblock * kForm.parts + part) * kRows;
    if constexpr (kForm.scales == Scales::minima) {
        scale = vmulq_f32(halves(run), bytes(run + kRows * 4 + factor));
        minimum = vmulq_f32(halves(run + kRows * 2), bytes(run + kRows * (4 + 8 * kForm.parts) + factor));
    } else if constexpr (kForm.scales == Scales::factors) {
        scale = vmulq_f32(vreinterpretq_f32_u8(vld1q_u8(run)), signed_bytes(run + kRows * 4 + factor));
    } else {
        scale = halves(run);
        if constexpr (kForm.scales == Scales::pair) minimum = halves(run + kRows * 2);
    }
    for (int t = 0; t < T; t++) {
        const size_t at = first + t * x.groups;
        total[t] = vfmaq_f32(total[t], vmulq_n_f32(vcvtq_f32_s32(dot[t]), x.scales[at]), scale);
        if constexpr (has_minimum(L)) total[t] = vfmsq_n_f32(total[t], minimum, x.sum(at, kForm.parts, part));
    }
}

// T tokens times one block, through all columns. `values` are the tokens' own, or those of their pairs.
template <Layout L, int T, bool Paired>
void tile(const Weights& w, const Activations& x, const int8_t* values, size_t block, size_t token, const Output& out) {
    constexpr size_t kStep = Paired ? 32 : 16;  // bytes of half a group
    const size_t groups = x.groups, code_bytes = kRows * row_code_bytes(L);
    const uint8_t* codes = w.codes + block * groups * code_bytes;
    const uint8_t* scales = w.scales + block * w.scale_bytes();
    constexpr bool kHalves = form(L).parts == 2;
    const uint8x16_t levels = w.levels ? vld1q_u8(w.levels) : vdupq_n_u8(0);
    float32x4_t total[T];
    for (int t = 0; t < T; t++) total[t] = vdupq_n_f32(0);
    int32x4_t dot[T];
    for (size_t g = 0; g < groups; g++, codes += code_bytes) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            if (kHalves || (half == 0 && g % run_of(L) == 0))
                for (int t = 0; t < T; t++) dot[t] = vdupq_n_s32(0);
            int8x16_t of_half[4];
            read_codes<L>(codes, half, levels, of_half);
            const int8_t* at = values + (2 * g + half) * kStep;
#ifdef __ARM_FEATURE_MATMUL_INT8
            if constexpr (Paired) add_half_of_pairs<T>(of_half, at, groups * 2 * kStep, dot);
#endif
            if constexpr (!Paired) add_half<T>(of_half, at, groups * 2 * kStep, dot);
            if (!kHalves && (half == 0 || (g % run_of(L) != run_of(L) - 1 && g != groups - 1))) continue;
#ifdef __ARM_FEATURE_MATMUL_INT8
            if constexpr (Paired) part<T>(dot);
#endif
            add_scaled<L, T>(dot, scales, g, kHalves ? half : 0, x, token * groups + g / run_of(L) * run_of(L), total);
        }
    }
    const size_t row = block * kRows, here = std::min(kRows, w.rows - row);
    for (int t = 0; t < T; t++) {
        const size_t at = (token + t) * w.rows + row;
        float32x4_t result = total[t];
        if constexpr (L == Layout::q8_row) result = vmulq_f32(result, vreinterpretq_f32_u8(vld1q_u8(scales)));
        if (out.bias) result = vaddq_f32(result, load_some(out.bias + row, here));
        if (out.residual) result = vaddq_f32(load_some(out.residual + at, here), result);
        store_some(out.data + at, result, here);
    }
}

// The tokens from `token` to before `last` for one block, T at a time, then fewer. `pairs` are the values of their pairs,
// where pairs are multiplied.
template <Layout L, int T>
void tiles(const Weights& w, const Activations& x, const int8_t* pairs, size_t block, size_t token, size_t last,
           const Output& out) {
    constexpr bool kPaired = kPairs && T > 1;
    const size_t of_token = x.groups * kGroup;
    for (; token + T <= last; token += T, pairs += T * of_token)
        tile<L, T, kPaired>(w, x, kPaired ? pairs : x.values + token * of_token, block, token, out);
    if constexpr (T > 1) tiles<L, T / 2>(w, x, pairs, block, token, last, out);
}

template <Layout L>
void multiply_layout(const Weights& w, const Activations& x, Range rows, Range blocks, const Output& out) {
    // A tile's activations stay in the first cache while the blocks pass by, the blocks in the second.
    for (size_t row = rows.first; row < rows.last; row += kMaxTokens) {
        const size_t last = std::min(row + kMaxTokens, rows.last);
        const int8_t* pairs = x.values;
#ifdef __ARM_FEATURE_MATMUL_INT8
        pairs = pair_up(x, row, last);
#endif
        for (size_t block = blocks.first; block < blocks.last; block++)
            tiles<L, kMaxTokens>(w, x, pairs, block, row, last, out);
    }
}

void multiply(const Weights& w, const Activations& x, Range rows, Range blocks, const Output& out) {
    for_layout(w.layout, [&](auto layout) { multiply_layout<layout>(w, x, rows, blocks, out); });
}

constexpr int kIndependent = 16;

double integer_work(size_t rounds) {
    int32x4_t total[kIndependent] = {};
    int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(5);
    for (size_t i = 0; i < rounds; i++)
        for (int k = 0; k < kIndependent; k++) {
#ifdef __ARM_FEATURE_MATMUL_INT8
            total[k] = vmmlaq_s32(total[k], a, b);
#else
            total[k] = add_products<0>(total[k], a, b);
#endif
            asm volatile("" : "+w"(total[k]), "+w"(a));  // or the loop would be folded
        }
    return static_cast<double>(rounds) * kIndependent * (kPairs ? 64 : 32);
}

double float_work(size_t rounds) {
    float32x4_t total[kIndependent] = {}, a = vdupq_n_f32(0.5f), b = vdupq_n_f32(0.25f);
    for (size_t i = 0; i < rounds; i++)
        for (int k = 0; k < kIndependent; k++) {
            total[k] = vfmaq_f32(total[k], a, b);
            asm volatile("" : "+w"(total[k]));
        }
    return static_cast<double>(rounds) * kIndependent * 8;
}

}  // namespace
}  // namespace handlens
