// What is made of sixteen lanes on every instruction set alike, and the one tile that all float products are made of.
//
// A wrapper (simd_*.h) holds the struct `Lanes` of sixteen floats with `spread`, `load` (all lanes or the first few;
// float, Half, BrainFloat), `store`, + - * /, `fma`, `larger` and `smaller` (the second where one is no number),
// `power_of_two` and `transpose`, and says how many `Lanes` fit the registers: `kTotals` beside `kMaxBlocks` operands.
// Everything above it is written once and compiled for each, always over sixteen lanes, so results have the same bits.
#pragma once

#include <cstddef>
#include <type_traits>

namespace handlens {
namespace {

constexpr size_t kLanes = 16;

inline size_t vectors(size_t count) { return (count + kLanes - 1) / kLanes; }

template <class Join>
inline float join_lanes(const Lanes& x, const Join& join) {
    float lane[kLanes];
    store(lane, x);
    for (size_t half = kLanes / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++) lane[i] = join(lane[i], lane[i + half]);
    return lane[0];
}
inline float sum(const Lanes& x) {
    return join_lanes(x, [](float a, float b) { return a + b; });
}
inline float largest(const Lanes& x) {
    return join_lanes(x, [](float a, float b) { return a > b ? a : b; });
}

// e^x within 2 units in the last place; at least 1e-38, infinite from 88.4 on.
inline Lanes exponential(Lanes x) {
    const Lanes rounder = spread(12582912.0f);  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    x = smaller(spread(89.0f), larger(spread(-87.0f), x));
    const Lanes shifted = fma(x, spread(1.44269504f), rounder);
    const Lanes n = shifted - rounder;
    // x - n ln 2, the logarithm in two parts of which the first has few bits
    Lanes r = fma(n, spread(-0.693359375f), x);
    r = fma(n, spread(2.12194440e-4f), r);
    Lanes series = spread(1.0f / 5040);
    for (const float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        series = fma(series, r, spread(factor));
    return series * power_of_two(shifted);
}

// total[t][b] = the sum over k of x[t, k] * w[k, lanes of b], one k after the other.
template <int T, int B, class Number>
inline __attribute__((always_inline)) void multiply_tile(const float* x, size_t x_row, const Number* w, size_t w_step,
                                                         size_t w_block, size_t count, Lanes (&total)[T][B]) {
    for (int t = 0; t < T; t++)
        for (int b = 0; b < B; b++) total[t][b] = spread(0);
    for (size_t k = 0; k < count; k++) {
        Lanes factor[B];
        for (int b = 0; b < B; b++) factor[b] = load(w + k * w_step + b * w_block);
        for (int t = 0; t < T; t++) {
            const Lanes number = spread(x[t * x_row + k]);
            for (int b = 0; b < B; b++) total[t][b] = fma(number, factor[b], total[t][b]);
        }
    }
}

// Calls f(T, row) for runs of T rows, as many as the registers hold beside B operands, then fewer, until all are done.
template <int B, int T = kTotals / B, class Function>
inline void for_tiles(size_t row, size_t rows, const Function& f) {
    for (; row + T <= rows; row += T) f(std::integral_constant<int, T>{}, row);
    if constexpr (T > 1) {
        constexpr int kFewer = T > 4 ? 4 : T / 2;
        if (row < rows) for_tiles<B, kFewer>(row, rows, f);
    }
}

}  // namespace
}  // namespace handlens
