#!/usr/bin/env bash
# Builds kernels_test, which compares the instruction sets of a processor bit for bit with plain C++, and runs it.
#
#     native/cross_test.sh [native] [aarch64]      by default both
#
# native: on this processor. aarch64: cross-compiled, under qemu-user, as a processor with i8mm and dotprod, as one with
# dotprod only, and as one with neither. Ends with 2 where something it needs is missing.
set -euo pipefail
cd "$(dirname "$0")"

targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(native aarch64)
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }

need cmake cmake
for target in "${targets[@]}"; do
    case $target in
        native) need c++ g++ ;;
        aarch64)
            need aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
            qemu=$(command -v qemu-aarch64-static || command -v qemu-aarch64) || missing+=(qemu-user-static)
            ;;
        *)
            echo "'$target' is no target; native and aarch64 are" >&2
            exit 2
            ;;
    esac
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "missing Debian packages: apt install ${missing[*]}" >&2
    exit 2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

build() { # NAME [cmake options]
    local name=$1
    shift
    cmake -S . -B "$work/$name" -DHANDLENS_KERNELS_TEST=ON "$@" >/dev/null
    cmake --build "$work/$name" --parallel "${JOBS:-2}" >"$work/log" || { cat "$work/log"; exit 1; }
}

# Prints what the test prints and keeps the digests of scalar, which the other sets equal.
run() { # NAME COMMAND ...
    local name=$1
    shift
    echo "== $name"
    "$@" | tee "$work/printed"
    grep '^scalar .* digest ' "$work/printed" >"$work/digests"
    [ -f "$work/first" ] || { cp "$work/digests" "$work/first"; first=$name; }
    diff "$work/first" "$work/digests" || { echo "$name computes other bits than $first" >&2; exit 1; }
}

for target in "${targets[@]}"; do
    if [ "$target" = native ]; then
        build native
        run "native ($(uname -m))" "$work/native/kernels_test"
        continue
    fi
    build aarch64 -DCMAKE_TOOLCHAIN_FILE=aarch64.cmake
    # The sets that each processor has to find.
    for cpu in "max neon-i8mm neon-dotprod neon scalar" "cortex-a76 neon-dotprod neon scalar" "cortex-a53 neon scalar"; do
        read -ra words <<<"$cpu"
        run "aarch64 under qemu, -cpu ${words[0]}" "$qemu" -cpu "${words[0]}" "$work/aarch64/kernels_test" "${words[@]:1}"
    done
done
echo "== all results have the same bits on all processors"
