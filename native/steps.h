// The layouts of quantised weights and the steps of a group (see kernels.h), each compiled by itself: shifts want constants.
#pragma once

#include <type_traits>

#include "kernels.h"

namespace handlens {
namespace {

template <int... Steps, class Function>
inline __attribute__((always_inline)) void for_steps(const Function& f) {
    (f(std::integral_constant<int, Steps>{}), ...);
}

// The steps of one of a group's parts. Where there is one part, steps that take the same bytes are neighbours.
template <int Parts, class Function>
inline __attribute__((always_inline)) void for_steps_of_part(int part, const Function& f) {
    if constexpr (Parts == 1)
        for_steps<0, 4, 1, 5, 2, 6, 3, 7>(f);
    else if (part == 0)
        for_steps<0, 1, 2, 3>(f);
    else
        for_steps<4, 5, 6, 7>(f);
}

// Calls f with the layout of quantised weights as a constant.
template <class Function>
inline void for_layout(Layout layout, const Function& f) {
    switch (layout) {
        case Layout::q8: return f(std::integral_constant<Layout, Layout::q8>{});
        case Layout::q4: return f(std::integral_constant<Layout, Layout::q4>{});
        case Layout::q5: return f(std::integral_constant<Layout, Layout::q5>{});
        case Layout::q4_k: return f(std::integral_constant<Layout, Layout::q4_k>{});
        case Layout::q5_k: return f(std::integral_constant<Layout, Layout::q5_k>{});
        case Layout::q6_k: return f(std::integral_constant<Layout, Layout::q6_k>{});
        case Layout::q4_1: return f(std::integral_constant<Layout, Layout::q4_1>{});
        case Layout::q5_1: return f(std::integral_constant<Layout, Layout::q5_1>{});
        case Layout::q2_k: return f(std::integral_constant<Layout, Layout::q2_k>{});
        case Layout::levels: return f(std::integral_constant<Layout, Layout::levels>{});
        case Layout::levels_k: return f(std::integral_constant<Layout, Layout::levels_k>{});
        case Layout::levels_half: return f(std::integral_constant<Layout, Layout::levels_half>{});
        default: return f(std::integral_constant<Layout, Layout::q8_row>{});
    }
}

}  // namespace
}  // namespace handlens
