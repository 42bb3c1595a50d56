#!/usr/bin/env bash
# Builds the kernels with AddressSanitizer and UndefinedBehaviorSanitizer and runs their tests on them.
#
#     native/sanitize.sh [tests ...]      by default the tests of the kernels
#
# Needs gcc or clang, CMake, ninja, nanobind and what the tests import; several minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A copy of the package, so that the module of the tree stays as it is.
mkdir "$work/tree"
git ls-files -z handlens tests examples pyproject.toml | tar -c --null -T - | tar -x -C "$work/tree"
cmake -S native -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DHANDLENS_SANITIZE=address,undefined \
    -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dnanobind_DIR="$("$python" -m nanobind --cmake_dir)" >/dev/null
cmake --build "$work/build"
cp "$work"/build/_native*.so "$work/tree/handlens/cpu/"

# An editable install in Python's own environment would come before any path: an environment that sees its packages, and
# none of its hooks, takes the package of the copy.
packages='import sysconfig; print(sysconfig.get_path("purelib"))'
"$python" -m venv --without-pip "$work/env"
"$python" -c "$packages" >"$("$work/env/bin/python" -c "$packages")/tested.pth"
python=$work/env/bin/python

runtimes=$(for name in libasan.so libubsan.so; do ${CC:-gcc} -print-file-name=$name; done | tr '\n' ' ')
cd "$work/tree"
tests=("$@")
[ ${#tests[@]} -gt 0 ] || mapfile -t tests < <(ls tests/test_*kernels*.py tests/test_pack*.py tests/test_quantiz*.py 2>/dev/null)
# Python itself keeps memory until its end, which is no leak of ours. What a sanitizer says is not captured.
export LD_PRELOAD=$runtimes ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export PYTHONPATH=$work/tree HANDLENS_REQUIRE_NATIVE=1 OMP_NUM_THREADS=1
tested=$("$python" -c "from handlens.cpu import _native; print(_native.__file__)")
case $tested in
    "$work"/*) ;;
    *)
        echo "the tests would run on $tested, which is not what was built here" >&2
        exit 1
        ;;
esac
# AddressSanitizer keeps what was freed, so tests of how much memory is given back say nothing here.
"$python" -m pytest -q --capture sys -p no:cacheprovider --timeout 1200 -k "not leave_memory" "${tests[@]}"
