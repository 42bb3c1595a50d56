"""Builds the held-out suites: pictures and truths that no training code draws from, made once, the same for a seed."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import handlens
from handlens.data.sources import INDEX, Sources
from handlens.errors import HandlensError, InputError
from handlens.eval.benchmarks import charts, lines, pages, pdfs, receipts, refusals, scenes, slicing, tables
from handlens.eval.suite import FACTS, Suite, facts_of, write

#: Read by `handlens eval pocketdocs`, in this order.
POCKETDOCS: dict[str, Suite] = {
    module.SUITE.name: module.SUITE
    for module in (lines, pages, pdfs, tables, receipts, charts, scenes, refusals, slicing)
}
#: Programs and packages whose version a suite's folder notes.
PROGRAMS = {"chromium": "--version", "pdftoppm": "-v"}
PACKAGES = ("numpy", "pillow", "vl-convert-python")
Tell = Callable[[str, int, int], None]  # suite, items done, items in all


def chosen(names: Sequence[str]) -> list[Suite]:
    """The suites of these names, all without any; InputError with all names if there is no such suite."""
    for name in names:
        if name not in POCKETDOCS:
            raise InputError(f"there is no suite {name!r}; there are {', '.join(POCKETDOCS)}")
    return [suite for name, suite in POCKETDOCS.items() if not names or name in names]


def build(
    sources: Sources,
    out: Path,
    names: Sequence[str] = (),
    *,
    n: int = 100,
    seed: int = 0,
    tell: Tell | None = None,
    packages: Path | None = None,
) -> dict[str, str]:
    """Builds suites of n items into folders of `out`; returns those that could not be built, each with the reason.

    A suite that is there stays as it is, if it was made with the same n, seed and sources. `packages` is where Debian
    packages with PDFs are kept; by default within `out`.
    """
    if n < 1:
        raise InputError(f"the number of items is {n}, but must be at least 1")
    if seed < 0:
        raise InputError(f"the seed is {seed}, but must be at least 0")
    plan = {"n_wanted": n, "seed": seed, "sources": hashlib.sha256((sources.folder / INDEX).read_bytes()).hexdigest()}
    wanted = chosen(names)
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed
    for suite in wanted:
        known = facts_of(out / suite.name)
        if differing := [key for key, value in plan.items() if known and known.get(key) != value]:
            raise InputError(
                f"{out / suite.name} was made with other {', '.join(differing)}; remove it, or give another folder"
            )
    skipped = {}
    facts = plan | {"made": f"{datetime.now(UTC):%Y-%m-%d}", "with": versions()}
    for suite in wanted:
        if (out / suite.name / FACTS).is_file():
            continue
        try:
            drawn = suite.build(sources, n, seed, packages or out / "packages")
            write(suite, out / suite.name, drawn, facts, lambda done, suite=suite: tell and tell(suite.name, done, n))
        except HandlensError as lacking:
            skipped[suite.name] = str(lacking)
    return skipped


def versions() -> dict[str, str]:
    """What draws here, and which version of it."""
    found = {"handlens": handlens.__version__}
    for program, option in PROGRAMS.items():
        if path := shutil.which(program):
            ran = subprocess.run([path, option], capture_output=True, text=True)
            found[program] = (ran.stdout or ran.stderr).strip().splitlines()[0]
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
