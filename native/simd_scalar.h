// Sixteen floats at a time in plain C++. See float_kernels.h for what a wrapper has to offer.
#pragma once

#include <algorithm>
#include <cstddef>

#include "half.h"

namespace handlens {
namespace {

constexpr int kTotals = 1;
constexpr int kMaxBlocks = 1;

struct Lanes {
    float lane[16];
};

// The lanes f(0) ... f(15).
template <class Function>
inline Lanes lanes(const Function& f) {
    Lanes made;
    for (size_t i = 0; i < 16; i++) made.lane[i] = f(i);
    return made;
}

inline Lanes spread(float x) { return lanes([&](size_t) { return x; }); }
inline Lanes load(const float* at) { return lanes([&](size_t i) { return at[i]; }); }
inline Lanes load(const float* at, size_t count) { return lanes([&](size_t i) { return i < count ? at[i] : 0; }); }
inline Lanes load(const Half* at) { return lanes([&](size_t i) { return widened(at[i]); }); }
inline Lanes load(const BrainFloat* at) { return lanes([&](size_t i) { return widened(at[i]); }); }
inline void store(float* at, const Lanes& x, size_t count = 16) {
    for (size_t i = 0; i < count; i++) at[i] = x.lane[i];
}

inline Lanes operator+(const Lanes& a, const Lanes& b) { return lanes([&](size_t i) { return a.lane[i] + b.lane[i]; }); }
inline Lanes operator-(const Lanes& a, const Lanes& b) { return lanes([&](size_t i) { return a.lane[i] - b.lane[i]; }); }
inline Lanes operator*(const Lanes& a, const Lanes& b) { return lanes([&](size_t i) { return a.lane[i] * b.lane[i]; }); }
inline Lanes operator/(const Lanes& a, const Lanes& b) { return lanes([&](size_t i) { return a.lane[i] / b.lane[i]; }); }
inline Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) {
    return lanes([&](size_t i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
}
inline Lanes larger(const Lanes& a, const Lanes& b) {
    return lanes([&](size_t i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Lanes smaller(const Lanes& a, const Lanes& b) {
    return lanes([&](size_t i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Lanes power_of_two(const Lanes& x) {
    return lanes([&](size_t i) {
        uint32_t bits;
        std::memcpy(&bits, x.lane + i, 4);
        bits = (bits << 23) + 0x3f800000;
        float number;
        std::memcpy(&number, &bits, 4);
        return number;
    });
}

// The largest magnitude among all lanes, as the bits of the float: as integers they order numbers < infinity < no number.
inline int32_t largest_bits(const Lanes& a, const Lanes& b) {
    int32_t most = 0;
    for (const Lanes* lanes : {&a, &b})
        for (const float& number : lanes->lane) {
            int32_t bits;
            std::memcpy(&bits, &number, 4);
            most = std::max(most, bits & 0x7fffffff);
        }
    return most;
}
// Stores the nearest integers (ties to even), which fit a byte, and gives their sum.
inline int32_t store_rounded(int8_t* at, const Lanes& x) {
    int32_t sum = 0;
    for (size_t i = 0; i < 16; i++) {
        // Adding and subtracting 1.5 * 2^23 rounds.
        at[i] = static_cast<int8_t>((x.lane[i] + 12582912.0f) - 12582912.0f);
        sum += at[i];
    }
    return sum;
}

// 16 rows of 16 numbers turned: to[c * 16 + r] = from[r * stride + c].
inline void transpose(const float* from, size_t stride, float* to) {
    for (size_t r = 0; r < 16; r++)
        for (size_t c = 0; c < 16; c++) to[c * 16 + r] = from[r * stride + c];
}

}  // namespace
}  // namespace handlens
