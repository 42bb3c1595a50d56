// Sixteen floats at a time in plain C++. See float_kernels.h for what a wrapper has to offer.
#pragma once

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

// 16 rows of 16 numbers turned: to[c * 16 + r] = from[r * stride + c].
inline void transpose(const float* from, size_t stride, float* to) {
    for (size_t r = 0; r < 16; r++)
        for (size_t c = 0; c < 16; c++) to[c * 16 + r] = from[r * stride + c];
}

}  // namespace
}  // namespace handlens
