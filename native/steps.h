// The steps of a group (see kernels.h), each compiled by itself: shifts want constants.
#pragma once

#include <type_traits>

namespace handlens {
namespace {

template <int... Steps, class Function>
inline __attribute__((always_inline)) void for_steps(const Function& f) {
    (f(std::integral_constant<int, Steps>{}), ...);
}

}  // namespace
}  // namespace handlens
