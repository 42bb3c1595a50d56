// The float kernels of one instruction set, on top of its wrapper `Lanes` (see lanes.h).
#pragma once

#include <algorithm>
#include <cmath>

#include "attention.h"
#include "kernels.h"
#include "lanes.h"
#include "quantize.h"

namespace handlens {
namespace {

// Float weights: each output is a sum over the columns, from the first to the last.
template <class Number, int B>
void multiply_blocks(const Weights& w, const float* x, Range rows, size_t block, const Output& out) {
    const size_t next = w.columns * kLanes;
    const auto* numbers = reinterpret_cast<const Number*>(w.codes) + block * next;
    for_tiles<B>(rows.first, rows.last, [&](auto count, size_t row) {
        constexpr int T = decltype(count)::value;
        Lanes total[T][B];
        multiply_tile<T, B>(x + row * w.columns, w.columns, numbers, kLanes, next, w.columns, total);
        for (int b = 0; b < B; b++) {
            const size_t column = (block + b) * kLanes, here = std::min(kLanes, w.rows - column);
            const Lanes bias = out.bias ? load(out.bias + column, here) : spread(0);
#pragma GCC unroll 24  // or totals would lie in memory, for an index that is no constant
            for (int t = 0; t < T; t++) {
                const size_t at = (row + t) * w.rows + column;
                Lanes result = total[t][b];
                if (out.bias) result = result + bias;
                if (out.residual) result = load(out.residual + at, here) + result;
                store(out.data + at, result, here);
            }
        }
    });
}

template <class Number>
void multiply_numbers(const Weights& w, const float* x, Range rows, Range blocks, const Output& out) {
    constexpr int kPair = std::min(2, kMaxBlocks);
    size_t block = blocks.first;
    for (; block + kPair <= blocks.last; block += kPair) multiply_blocks<Number, kPair>(w, x, rows, block, out);
    for (; block < blocks.last; block++) multiply_blocks<Number, 1>(w, x, rows, block, out);
}

void multiply_floats(const Weights& w, const float* x, Range rows, Range blocks, const Output& out) {
    if (w.layout == Layout::f32) return multiply_numbers<float>(w, x, rows, blocks, out);
    if (w.layout == Layout::f16) return multiply_numbers<Half>(w, x, rows, blocks, out);
    return multiply_numbers<BrainFloat>(w, x, rows, blocks, out);
}

// Calls f(i, count) for every run of sixteen columns; the last may be shorter.
template <class Function>
inline void for_vectors(size_t columns, const Function& f) {
    for (size_t i = 0; i < columns; i += kLanes) f(i, std::min(kLanes, columns - i));
}

inline float mean_square(const float* x, size_t columns) {
    Lanes total = spread(0);
    for_vectors(columns, [&](size_t i, size_t count) {
        const Lanes part = load(x + i, count);
        total = fma(part, part, total);
    });
    return sum(total) / static_cast<float>(columns);
}

void layer_norm(const Step& step, const float* x, const float*, size_t columns, float* out) {
    Lanes total = spread(0);
    for_vectors(columns, [&](size_t i, size_t count) { total = total + load(x + i, count); });
    const Lanes mean = spread(sum(total) / static_cast<float>(columns));
    for_vectors(columns, [&](size_t i, size_t count) { store(out + i, load(x + i, count) - mean, count); });
    const Lanes inverse = spread(1.0f / std::sqrt(mean_square(out, columns) + step.eps));
    for_vectors(columns, [&](size_t i, size_t count) {
        const Lanes scaled = load(out + i, count) * inverse;
        store(out + i, fma(scaled, load(step.weight + i, count), load(step.bias + i, count)), count);
    });
}

void rms_norm(const Step& step, const float* x, const float*, size_t columns, float* out) {
    const Lanes inverse = spread(1.0f / std::sqrt(mean_square(x, columns) + step.eps));
    for_vectors(columns, [&](size_t i, size_t count) {
        store(out + i, load(x + i, count) * inverse * load(step.weight + i, count), count);
    });
}

// x times the logistic function of z.
inline Lanes gated(Lanes x, Lanes z) { return x / (spread(1) + exponential(spread(0) - z)); }

void gelu_tanh(const Step&, const float* x, const float*, size_t columns, float* out) {
    // (1 + tanh(u)) / 2 is the logistic function of 2 u.
    const Lanes linear = spread(1.5957691216f), cubic = spread(0.0713548163f);  // 2 sqrt(2 / pi), and 0.044715 of it
    for_vectors(columns, [&](size_t i, size_t count) {
        const Lanes number = load(x + i, count);
        store(out + i, gated(number, number * fma(cubic, number * number, linear)), count);
    });
}

void gelu(const Step&, const float* x, const float*, size_t columns, float* out) {
    // The formula of `reference.gelu`.
    for_vectors(columns, [&](size_t i, size_t count) {
        const Lanes number = load(x + i, count), magnitude = larger(number, spread(0) - number);
        const Lanes z = magnitude * spread(0.70710678f);
        const Lanes t = spread(1) / fma(spread(0.3275911f), z, spread(1));
        Lanes series = spread(1.061405429f);
        for (const float factor : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
            series = fma(series, t, spread(factor));
        const Lanes beyond = spread(0.5f) * (series * t) * exponential(spread(0) - z * z);
        store(out + i, larger(spread(0), number) - magnitude * beyond, count);
    });
}

void swiglu(const Step&, const float* gate, const float* up, size_t columns, float* out) {
    for_vectors(columns, [&](size_t i, size_t count) {
        const Lanes number = load(gate + i, count);
        store(out + i, gated(number, number) * load(up + i, count), count);
    });
}

void prepare(const Step& step, const float* x, const float* second, size_t columns, float* out) {
    switch (step.kind) {
        case Step::none: break;
        case Step::layer_norm: return layer_norm(step, x, second, columns, out);
        case Step::rms_norm: return rms_norm(step, x, second, columns, out);
        case Step::gelu_tanh: return gelu_tanh(step, x, second, columns, out);
        case Step::gelu: return gelu(step, x, second, columns, out);
        case Step::swiglu: return swiglu(step, x, second, columns, out);
    }
}

void attend(const Attention& attention, size_t task, float* scratch) {
    if (attention.half) return AttentionBlock<Half>(attention, task, scratch).run();
    AttentionBlock<float>(attention, task, scratch).run();
}

// Multiplications and sums as numpy's, so `reference.rope` has the same bits.
void turn(const float* x, const float* cos, const float* sin, size_t heads, size_t width, float* out) {
    for (size_t h = 0; h < heads; h++, x += width, out += width)
        for (size_t i = 0; i < width / 2; i++) {
            const float even = x[2 * i], odd = x[2 * i + 1];
            out[2 * i] = even * cos[i] - odd * sin[i];
            out[2 * i + 1] = even * sin[i] + odd * cos[i];
        }
}

constexpr FloatKernels kTable = {quantize, multiply_floats, prepare, attend, turn};

}  // namespace
}  // namespace handlens
