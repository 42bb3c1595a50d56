# Builds for 64-bit ARM Linux with Debian's cross compiler (g++-aarch64-linux-gnu); see cross_test.sh.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
# Programs hold their libraries, so they run under qemu wherever it finds itself.
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
