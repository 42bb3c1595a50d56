"""Imports point down, and importing handlens costs next to nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import handlens

ROOT = Path(handlens.__file__).parent

#: What a module may import of handlens, by the first part of its name below the package: the floors of the house.
#: Doors may import everything but each other.
FLOORS = {
    "errors": set(),
    "atomic": set(),
    "config": {"errors"},
    "image_files": set(),
    "decode": {"errors", "image_files"},
    "images": {"config", "errors"},
    "placement": {"config", "errors"},
    "markdown": set(),
    "data": {"data", "atomic", "errors", "markdown"},
    "eval": {
        "eval",
        "__init__",
        "atomic",
        "chat",
        "data",
        "decode",
        "engine",
        "errors",
        "markdown",
        "reading",
        "weights",
    },
    "ink": set(),
    "layout": {"ink"},
    "things": {"ink", "layout"},
    "plotted": {"layout", "markdown"},
    "positions": set(),
    "prompts": {"config", "errors"},
    "vocabulary": {"errors"},
    "tokenizer": {"errors", "vocabulary"},
    "gguf": {"gguf", "atomic", "config", "errors", "positions", "tokenizer"},
    "checkpoint": {"gguf", "config", "errors"},
    "processor": {"config", "decode", "errors", "images", "prompts", "tokenizer"},
    "passages": {"data"},
    "naming": {"config", "data", "errors", "images"},
    "looking": {"data", "layout", "naming", "processor", "reading", "things"},
    "reading": {
        "cpu",
        "data",
        "engine",
        "errors",
        "layout",
        "markdown",
        "passages",
        "plotted",
        "processor",
        "prompts",
        "tokenizer",
    },
    "backend": {"config", "images"},
    "cpu": {"cpu", "atomic", "backend", "config", "errors", "gguf", "images", "positions"},
    "engine": {"engine", "atomic", "backend", "config", "errors", "images", "processor"},
    "shards": {"gguf"},
    "quant": {
        "quant",
        "atomic",
        "chat",
        "conversion",
        "cpu",
        "decode",
        "engine",
        "errors",
        "eval",
        "gguf",
        "joining",
        "measure",
        "proof",
        "weights",
    },
    # `model` only when torch is asked for; see test_every_module_imports_without_torch_or_transformers.
    "weights": {"checkpoint", "config", "cpu", "engine", "errors", "gguf", "model", "tokenizer"},
    "proof": {
        "proof",
        "atomic",
        "config",
        "cpu",
        "errors",
        "gguf",
        "images",
        "positions",
        "processor",
        "tokenizer",
        "weights",
    },
    "ollama": {"config", "engine", "errors", "prompts", "weights"},
    "joining": {"atomic", "conversion", "errors", "gguf", "proof"},
    "repair": {"atomic", "config", "conversion", "errors", "gguf", "proof"},
    "conversion": {
        "atomic",
        "checkpoint",
        "config",
        "cpu",
        "errors",
        "gguf",
        "processor",
        "shards",
        "tokenizer",
        "weights",
    },
    "chat": {
        "backend",
        "decode",
        "engine",
        "errors",
        "looking",
        "naming",
        "processor",
        "reading",
        "tokenizer",
        "weights",
    },
    "measure": {"chat", "cpu", "engine", "images"},
    "model_card": {"chat", "tokenizer", "weights"},
}
#: The PyTorch side is imported by who asks for it only.
TORCH = {
    "model": {
        "model",
        "checkpoint",
        "chat",
        "config",
        "errors",
        "gguf",
        "images",
        "placement",
        "positions",
        "processor",
        "prompts",
        "tokenizer",
        "weights",
        "engine",
        "backend",
        "decode",
    }
}
DOORS = {"cli", "__main__"}
#: What extras bring, imported by the functions that need it: floor -> packages.
EXTRAS = {
    "data": {"faker", "fontTools", "matplotlib", "msgpack", "resvg_py"},
    "eval": {"fontTools", "rapidocr", "vl_convert"},
    "quant": {"matplotlib"},
}
CORE = {"numpy", "PIL", "tokenizers", "safetensors", "typer", "rich", "click"}


def imported(path: Path) -> set[str]:
    """The names of all modules that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            top = node.module == "handlens"
            names |= {f"handlens.{alias.name}" for alias in node.names} if top else {node.module}
    return names


def modules() -> dict[Path, str]:
    """Every module of the package with its floor."""
    return {
        path: path.relative_to(ROOT).with_suffix("").parts[0]
        for path in sorted(ROOT.rglob("*.py"))
        if path != ROOT / "__init__.py"
    }


def test_imports_point_down():
    wrong = []
    for path, floor in modules().items():
        for name in imported(path):
            if not name.startswith("handlens"):
                continue
            target = name.split(".")[1] if "." in name else "__init__"
            if floor in DOORS:
                allowed = target not in DOORS - {floor} or floor == "__main__"
            else:
                allowed = target in (FLOORS | TORCH)[floor]
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_the_package_imports_core_dependencies_only():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, floor in modules().items()
        for name in imported(path)
        if floor not in TORCH
        and (top := name.split(".")[0]) not in CORE | EXTRAS.get(floor, set()) | {"handlens"}
        and top not in sys.stdlib_module_names
    ]
    assert wrong == []


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_takes_less_than_300_ms_and_loads_no_torch():
    code = (
        "import sys, time; start = time.perf_counter(); import handlens; "
        "print(time.perf_counter() - start, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    best = min(run(code).split() for _ in range(3))
    assert float(best[0]) < 0.3
    assert best[1:] == ["False", "False"]


def test_every_module_imports_without_torch_or_transformers():
    names = [
        "handlens." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path, floor in modules().items()
        if path.name != "__main__.py" and floor not in TORCH
    ]
    code = f"import sys, importlib\nfor name in {names}: importlib.import_module(name)\n"
    code += "print(sorted({'torch', 'transformers', 'gguf', 'matplotlib', 'faker', 'fontTools'} & set(sys.modules)))"
    assert run(code).strip() == "[]"


def test_public_names_resolve():
    for name in handlens.__all__:
        assert getattr(handlens, name) is not None
