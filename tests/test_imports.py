"""The import statements of every file against the order of the house, read from the source."""

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from tests.paths import ROOT

PACKAGE = ROOT / "gradsurgery"
# Wings and files of the library; each imports only those listed above it, and its own files.
LIBRARY_WINGS = [
    "arguments",
    "hashing",
    "gradients",
    "distributed",
    "kernels",
    "sampling",
    "conflict_counts",
    "diagnostics",
    "stateful",
    "method",
    "solvers",
    "optimizer",
    "methods",
    "",  # gradsurgery/__init__.py
]
FILES = sorted(PACKAGE.rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
MINBERT = ROOT / "benchmarks" / "multitask_bert"
# Wings and files of the benchmark; each imports only those listed above it, and its own files.
WINGS = [
    "tasks",
    "methods",
    "metrics",
    "significance",
    "intervals",
    "data",
    "recipes",
    "records",
    "page",
    "errors",
    "claims",
    "report",
    "batches",
    "model",
    "training",
    "cli",
    "__main__",
    "__init__",
]
WITH_TORCH = {"batches", "model", "training", "cli"}


def module_name(path):
    """Dotted name below ``gradsurgery``: ``kernels.reference``, ``kernels``, or ``""``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(node, package):
    """Absolute names that one import statement may bind, modules and members alike."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, base]).rstrip(".")
    return [f"{base}.{alias.name}" for alias in node.names]


def imports(path, package="gradsurgery"):
    """Every import of a file as ``(statement, name, whether at the top level)``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside_functions = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    return [
        (node, name, id(node) not in inside_functions)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in imported(node, package)
    ]


def package_of(path):
    name = module_name(path)
    parts = ["gradsurgery", *name.split(".")] if name else ["gradsurgery"]
    return ".".join(parts if path.name == "__init__.py" else parts[:-1])


def under_type_checking(path):
    """Import statements that only a type checker runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.lineno
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
        for node in ast.walk(block)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }


def test_there_is_something_to_read():
    assert {"gradients.buffer", "kernels.reference", "methods.order", "methods.sums", ""} <= {
        module_name(path) for path in FILES
    }


def library_imports(path):
    """Files of the library that one of them imports, as names below ``gradsurgery``."""
    names = {module_name(file) for file in FILES}
    for _, target, _ in imports(path, package_of(path)):
        below = target.removeprefix("gradsurgery.")
        if target.split(".")[0] == "gradsurgery" and target != "gradsurgery":
            found = below if below in names else below.rpartition(".")[0]
            assert found in names, f"{path.name} imports {target}"
            yield found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_wing_of_the_library_imports_only_wings_above_it(path):
    wing = module_name(path).split(".")[0]
    assert wing in LIBRARY_WINGS, f"{module_name(path)} has no place in the order of the house"
    for name in library_imports(path):
        above = name.split(".")[0]
        assert LIBRARY_WINGS.index(above) <= LIBRARY_WINGS.index(wing), f"{path} imports {name}"


def test_no_files_of_the_library_import_each_other_in_a_circle():
    graph = {module_name(path): set(library_imports(path)) for path in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_file_of_the_library_grows_beyond_350_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_the_core_imports_torch_and_the_standard_library(path):
    for node, target, at_the_top in imports(path, package_of(path)):
        top = target.split(".")[0]
        place = f"{path.name}:{node.lineno} imports {target}"
        if top == "triton":
            assert module_name(path).startswith("kernels.fused."), place
        elif top == "matplotlib":
            only_for_types = node.lineno in under_type_checking(path)
            assert module_name(path) == "diagnostics", place
            assert not at_the_top or only_for_types, place
        elif top == "typing_extensions":
            assert node.lineno in under_type_checking(path), place
        else:
            assert top in {"gradsurgery", "torch", *sys.stdlib_module_names}, place


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_benchmarks_use_public_names(path):
    import gradsurgery

    for node, target, _ in imports(path, "benchmarks"):
        if target.split(".")[0] == "gradsurgery":
            place = f"{path.name}:{node.lineno} imports {target}"
            assert isinstance(node, ast.ImportFrom), place
            assert node.module == "gradsurgery", place
            # The speed suite times the kernels, which the optimizers choose and users do not.
            timed = {"kernels"} if path.parent.name == "speed" else set()
            assert target.removeprefix("gradsurgery.") in {*gradsurgery.__all__, *timed}, place


def minbert_name(path):
    """Dotted name below ``benchmarks.multitask_bert``: ``report.plots.bars``, ``tasks``."""
    return ".".join(path.relative_to(MINBERT).with_suffix("").parts)


MINBERT_FILES = {minbert_name(path): path for path in sorted(MINBERT.rglob("*.py"))}


def minbert_imports(name):
    """Files of the benchmark that one of them imports, as ``(file, whether at the top level)``."""
    found = set()
    for _, target, at_the_top in imports(MINBERT_FILES[name], "benchmarks"):
        below = target.removeprefix("benchmarks.multitask_bert.")
        if below != target:
            file = below if below in MINBERT_FILES else below.rpartition(".")[0]
            found.add((file if file in MINBERT_FILES else f"{below}.__init__", at_the_top))
    return found


@pytest.mark.parametrize("name", MINBERT_FILES)
def test_a_wing_imports_only_wings_above_it(name):
    wing = name.split(".")[0]
    assert wing in WINGS, f"{name} has no place in the order of the house"
    for file, at_the_top in minbert_imports(name):
        assert file in MINBERT_FILES, f"{name} imports {file}"
        above = file.split(".")[0]
        assert WINGS.index(above) <= WINGS.index(wing), f"{name} imports {file}"
        if wing not in WITH_TORCH and not (wing == "__main__" and not at_the_top):
            assert above not in WITH_TORCH - {"cli"}, f"{name} imports {file}, which needs torch"


def test_no_files_of_the_benchmark_import_each_other_in_a_circle():
    graph = {name: {file for file, _ in minbert_imports(name)} for name in MINBERT_FILES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MINBERT_FILES)


@pytest.mark.parametrize("name", MINBERT_FILES)
def test_only_wings_that_train_import_torch(name):
    if name.split(".")[0] not in WITH_TORCH:
        tops = {target.split(".")[0] for _, target, _ in imports(MINBERT_FILES[name])}
        assert not tops & {"torch", "gradsurgery", "safetensors"}


@pytest.mark.parametrize("name", [name for name in MINBERT_FILES if not name.endswith("__init__")])
def test_a_file_is_of_a_length_to_be_read(name):
    assert len(MINBERT_FILES[name].read_text(encoding="utf-8").splitlines()) <= 300


def test_public_names_exist():
    import gradsurgery

    assert sorted(set(gradsurgery.__all__)) == sorted(gradsurgery.__all__)
    for name in gradsurgery.__all__:
        assert hasattr(gradsurgery, name)


def test_public_names_are_those_that_a_type_checker_sees():
    import gradsurgery

    path = PACKAGE / "__init__.py"
    seen = [
        (f"{node.module}.{alias.name}", alias.asname)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.lineno in under_type_checking(path)
        for alias in node.names
    ]
    assert [*(name for _, name in seen), "__version__"] == gradsurgery.__all__
    for home, name in seen:
        module, _, member = home.rpartition(".")
        assert name == member  # without "as", a strict checker lets nobody import it from here
        assert getattr(gradsurgery, name) is getattr(importlib.import_module(module), name)


def test_nothing_but_public_names_is_shown():
    import gradsurgery
    import gradsurgery.methods.pcgrad

    shown = [name for name in dir(gradsurgery) if not name.startswith("__")]
    assert sorted(shown) == sorted({*gradsurgery.__all__} - {"__version__"})
    with pytest.raises(AttributeError, match="'gradsurgery' has no attribute 'PCGard'"):
        _ = gradsurgery.PCGard


def loaded_by(statement):
    """Modules that a statement loads in a fresh process that has torch."""
    program = (
        "import sys, torch; before = set(sys.modules)\n"
        f"{statement}\nprint(*set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_a_name_loads_what_it_needs_and_no_more():
    assert loaded_by("import gradsurgery") == {"gradsurgery"}
    loaded = loaded_by("from gradsurgery import PCGrad")
    tops = {name.partition(".")[0] for name in loaded}
    assert not tops & {"triton", "matplotlib", "numpy", "scipy"}
    methods = {name for name in loaded if name.startswith("gradsurgery.methods.")}
    assert methods == {f"gradsurgery.methods.{name}" for name in ("pcgrad", "order")}
    solvers = {name for name in loaded if name.startswith("gradsurgery.solvers.")}
    assert solvers == {"gradsurgery.solvers.plain"}
    for wing in ("sampling", "kernels.fused"):
        assert not any(name.startswith(f"gradsurgery.{wing}") for name in loaded)
