"""Packages got with their ordinary clients and unpacked into a folder; nothing is installed.

An ecosystem is "pip", "npm", "apt" (Debian), or "extra": a Python package that the extra `data` brings.
"""

import importlib.util
import lzma
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from handlens.errors import HandlensError


class PackageError(HandlensError):
    """A package that its client could not get."""


#: The command that puts a package's archive into the current folder. Debian keeps one version a release: none is named.
CLIENTS: dict[str, Callable[[str, str], list[str]]] = {
    "pip": lambda name, version: [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
        f"{name}=={version}",
    ],
    "npm": lambda name, version: ["npm", "pack", "--silent", f"{name}@{version}"],
    "apt": lambda name, version: ["apt-get", "download", "--quiet", name],
}
#: Programs that an ecosystem needs besides Python.
PROGRAMS = {"npm": ("npm",), "apt": ("apt-get", "dpkg")}

#: Rows of the manifest, each with the folder of its package.
Rows = Iterable[tuple[dict, Path]]


def missing(ecosystem: str, name: str) -> list[str]:
    """What this machine lacks to get a package: programs, or the Python package itself."""
    if ecosystem == "extra":
        return [] if importlib.util.find_spec(name) else [f"{name} (pip install 'handlens[data]')"]
    return [program for program in PROGRAMS.get(ecosystem, ()) if shutil.which(program) is None]


def unpacked(ecosystem: str, name: str, version: str, packages: Path) -> Path:
    """The folder with a package's files; what an earlier call unpacked under `packages` is used again."""
    if ecosystem == "extra":
        return Path(importlib.util.find_spec(name).origin).parent
    folder = packages.absolute() / ecosystem / f"{name}-{version}".replace("/", "-").rstrip("-")
    if folder.exists():
        return folder
    download = folder.with_name(f".{folder.name}.download")
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir(parents=True)
    try:
        _run(CLIENTS[ecosystem](name, version), download, f"{ecosystem} package {name} {version}")
        archives = [path for path in download.iterdir() if path.suffix in UNPACK]
        if len(archives) != 1:
            raise PackageError(f"{ecosystem} package {name} {version}: one archive expected, got {archives}")
        content = download / "content"
        content.mkdir()
        UNPACK[archives[0].suffix](archives[0], content)
        content.rename(folder)
    finally:
        shutil.rmtree(download, ignore_errors=True)
    return folder


def _run(command: list[str], folder: Path, what: str) -> None:
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if ran.returncode:
        raise PackageError(f"{what} could not be got: `{' '.join(command)}` says:\n{ran.stderr.strip()[-600:]}")


def _wheel(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)


def _tarball(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")


def _debian(archive: Path, folder: Path) -> None:
    _run(["dpkg", "-x", str(archive), str(folder)], folder, archive.name)


UNPACK: dict[str, Callable[[Path, Path], None]] = {".whl": _wheel, ".tgz": _tarball, ".deb": _debian}


def files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The regular files that match, in the order of the patterns and sorted within one."""
    return [
        path
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
        if path.is_file() and not path.is_symlink()
    ]


#: A dictionary as large as the longest list: the presets' own is 64 MiB, and takes longer to allocate than to use.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 2**20}]


def write_list(path: Path, lines: Iterable[str]) -> None:
    """One item a line, compressed."""
    path.write_bytes(lzma.compress("\n".join(lines).encode("utf-8"), filters=FILTERS))
