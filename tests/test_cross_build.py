"""The kernels without Python: every instruction set of this processor, and of 64-bit ARM processors under qemu."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "native" / "cross_test.sh"


def lacks(*programs: str) -> str:
    """Those programs that are not installed."""
    return ", ".join(program for program in programs if shutil.which(program) is None)


QEMU = "qemu-aarch64" if shutil.which("qemu-aarch64") else "qemu-aarch64-static"
NATIVE = lacks("bash", "cmake", "c++")
CROSS = NATIVE or lacks("aarch64-linux-gnu-g++", QEMU)


def run(*targets: str) -> dict[str, list[str]]:
    """What the script prints for these targets, by heading."""
    ran = subprocess.run([SCRIPT, *targets], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    sections = [section.splitlines() for section in ran.stdout.split("== ")[1:]]
    return {heading: lines for heading, *lines in sections}


def usable(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines if line.endswith(" usable")]


@pytest.mark.skipif(NATIVE != "", reason=f"not installed: {NATIVE}")
def test_every_instruction_set_of_this_processor_has_the_bits_of_plain_c():
    printed = run("native")
    heading = next(iter(printed))
    assert heading.startswith("native") and usable(printed[heading])[-1] == "scalar"
    for name in usable(printed[heading]):
        for what in ("quantize", "multiply Q4_K", "multiply F16 as int8", "attention", "rope", "layer_norm", "swiglu"):
            assert any(
                line.split("  ")[0] == name and f" {what} " in line and "digest" in line for line in printed[heading]
            )
    assert list(printed)[-1] == "all results have the same bits on all processors"


@pytest.mark.slow  # two builds, and five times the program, four of them emulated
@pytest.mark.timeout(1200)
@pytest.mark.skipif(CROSS != "", reason=f"not installed: {CROSS}")
def test_arm_processors_find_their_instruction_sets_and_have_the_bits_of_this_one():
    printed = run("native", "aarch64")
    sets = {heading.split()[-1]: usable(lines) for heading, lines in printed.items() if heading.startswith("aarch64")}
    assert sets == {
        "max": ["neon-i8mm", "neon-dotprod", "neon", "scalar"],
        "cortex-a76": ["neon-dotprod", "neon", "scalar"],
        "cortex-a53": ["neon", "scalar"],
    }
    assert "neon-i8mm      lacks i8mm dotprod" in printed["aarch64 under qemu, -cpu cortex-a53"]


@pytest.mark.skipif(not shutil.which("bash"), reason="not installed: bash")
def test_what_is_missing_is_said_with_the_names_of_debian_packages(tmp_path):
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name))
    ran = subprocess.run([SCRIPT], capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert ran.returncode == 2
    assert "apt install cmake g++ g++-aarch64-linux-gnu qemu-user-static" in ran.stderr
