"""Rules of the package's structure: imports between modules, sizes, and forbidden calls."""

from __future__ import annotations

import ast
import logging.config
import re
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

import npstream

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "npstream"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

TESTS = sorted(ROOT.glob("tests/**/test_*.py"))

SOLE_IMPORTERS = {
    "numba": {"_core.jit"},
    "llvmlite": {"_core.jit"},
    "torch": {
        *("torch.__init__", "torch.cuda_gather", "torch.device", "torch.device_gather"),
        *("torch.gather_columns", "torch.gather_kernel"),
    },
    "triton": {"torch.gather_kernel"},
    "hypothesis": {"testing"},
    "fsspec": {"storage.connection", "storage.drivers", "storage.remote", "storage.uploads"},
    "pickle": {"formats.encodings.encodings", "iteration.feeding.workers"},
}
"""Package -> the only modules that may import it."""

SHARED_NAMES = {
    "will_need": "madvise, for Numba kernels and for Python",
    "copy": "memcpy in kernels, and the public function that copies samples",
    "parse": "parse the name of an encoding, and parse an expression",
    "read": "the kernel that reads samples, and the DataFrame of Spark that reads a dataset",
    "write": "write a dataset: from Python objects, from Dask and from Spark",
    "request_range": "a driver's range request, over HTTP and to Hugging Face",
}
"""Public names that two modules define on purpose, with their common meaning."""

MAX_MODULE_LINES = 700
MAX_TEST_LINES = 700
MAX_MODULES = 14
MAX_FUNCTION_LINES = 60


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def imported_packages(module: str) -> set[str]:
    """Return the top-level packages that a module imports, also inside functions."""
    names = set()
    for node in ast.walk(tree(module)):
        match node:
            case ast.Import():
                names.update(alias.name for alias in node.names)
            case ast.ImportFrom(level=0):
                names.add(node.module)
            case ast.Call(func=ast.Name("import_module") | ast.Attribute(attr="import_module")):
                names.update(arg.value for arg in node.args if isinstance(arg, ast.Constant))
    return {name.partition(".")[0] for name in names}


def test_layers_point_down(monkeypatch):
    monkeypatch.chdir(ROOT)
    # import-linter would disable all existing loggers, including ours, for later tests.
    monkeypatch.setattr(logging.config, "dictConfig", lambda config: None)
    assert lint_imports(config_filename="setup.cfg", no_cache=True) == 0


def test_imports_have_no_cycles():
    """Imports under TYPE_CHECKING count, too."""
    graph = grimp.build_graph("npstream")
    imports = {
        module: graph.find_modules_directly_imported_by(module)
        for module in graph.modules - {"npstream"}  # the package imports its exports lazily
    }
    TopologicalSorter(imports).prepare()  # raises CycleError


def defined_names(module: str) -> set[str]:
    """Return the public names that a module defines, except type variables."""
    names = set()
    for node in tree(module).body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                names.add(node.name)
            case ast.Assign(value=ast.Call(func=ast.Name("TypeVar" | "ParamSpec"))):
                pass
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {
                    part.id
                    for target in targets
                    for part in ast.walk(target)
                    if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
                }
    return {name for name in names if not name.startswith("_")}


def test_public_names_are_unique_in_the_package():
    """So a name identifies its module, for a reader and for a search.

    The names in ``streaming.base`` are those of Streaming.
    """
    own = [module for module in MODULES if ".streaming.base." not in f".{module}"]
    count = Counter(name for module in own for name in defined_names(module))
    repeated = {name for name, times in count.items() if times > 1}
    assert repeated <= set(SHARED_NAMES)


@pytest.mark.parametrize("package", SOLE_IMPORTERS)
def test_heavy_packages_are_imported_by_listed_modules_only(package):
    importers = {module for module in MODULES if package in imported_packages(module)}
    assert importers <= SOLE_IMPORTERS[package]


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_stay_short(module):
    lines = MODULES[module].read_text().count("\n")
    assert lines <= MAX_MODULE_LINES
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # Signatures and docstrings are not limited.
            code = node.body[1:] if ast.get_docstring(node) else node.body
            assert not code or node.end_lineno - code[0].lineno < MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize(
    "path",
    sorted(PACKAGE.rglob("__init__.py")),
    ids=lambda path: str(path.parent.relative_to(ROOT)),
)
def test_folders_hold_few_modules(path):
    assert len([*path.parent.glob("*.py")]) - 1 <= MAX_MODULES  # __init__ is not counted


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_stay_short(path):
    assert path.read_text().count("\n") <= MAX_TEST_LINES


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__init__")])
def test_modules_have_a_test_file_or_name_one(module):
    *folders, name = module.split(".")
    if Path(ROOT, "tests", *folders, f"test_{name.strip('_')}.py").is_file():
        return
    last = ast.get_docstring(tree(module)).splitlines()[-1]
    match = re.fullmatch(r"Tested in (tests/\S+\.py)\.", last)
    assert match, f"{MODULES[module]} should end its docstring with 'Tested in tests/... .'"
    assert (ROOT / match[1]).is_file(), f"there is no {match[1]}"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_sleeps_and_no_kernel_starts_threads(module):
    """Code must wait on a lock or a condition. Numba's threads do not survive a fork."""
    for node in ast.walk(tree(module)):
        match node:
            case ast.Call(func=ast.Attribute(attr="sleep") | ast.Name("sleep")):
                pytest.fail(f"sleep, line {node.lineno}")
            case ast.keyword(arg="parallel", value=ast.Constant(True)):
                pytest.fail(f"parallel=True, line {node.lineno}")
            case ast.Name("prange") | ast.Attribute(attr="prange"):
                pytest.fail(f"prange, line {node.lineno}")


def test_public_names_resolve():
    for name in [*npstream.__all__, "open"]:
        assert getattr(npstream, name) is not None
    assert {*npstream.__all__, "open"} == set(npstream._EXPORTS)
    assert set(npstream._EXPORTS) <= set(dir(npstream))


def test_star_import_does_not_hide_the_builtin_open():
    assert "open" not in npstream.__all__


def test_unknown_public_name_raises_as_in_any_module():
    with pytest.raises(AttributeError, match="module 'npstream' has no attribute 'nothing'"):
        npstream.nothing  # noqa: B018


def test_no_public_name_hides_a_module():
    """After an import of such a module or package, the attribute would be the module."""
    hidden = {n for n in npstream._EXPORTS if n in MODULES or f"{n}.__init__" in MODULES}
    assert {name for name in hidden if npstream._EXPORTS[name] != f"npstream.{name}"} == set()
