// The steps of a group (see kernels.h), each compiled by itself: shifts want constants.
#pragma once

#include <type_traits>

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

}  // namespace
}  // namespace handlens
