"""What is public, what importing it costs, and which part may know which."""

import ast
import json
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import kcelectra

ROOT = Path(kcelectra.__file__).parent
REPOSITORY = Path(__file__).parents[1]
MODULES = {
    ".".join(("kcelectra", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

SHARED_MODULES = {"errors", "manifest", "arguments", "hub", "outgoing", "precision"}
SHARED = {*SHARED_MODULES, "tokenization"}
#: Which parts a part may import, itself and the shared modules aside.
ALLOWED: dict[str, set[str]] = {
    "corpus": set(),
    "pretraining": {"corpus"},
    "finetuning": {"corpus"},
    "release": {"corpus", "finetuning"},
    "tokenization": {"corpus"},
    **{name: set() for name in SHARED_MODULES},
}


# names


def test_all_is_the_lazy_table():
    assert kcelectra.__all__ == sorted(kcelectra._PUBLIC)


def test_all_is_what_a_type_checker_sees():
    (block,) = [node for node in ast.parse((ROOT / "__init__.py").read_text()).body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == kcelectra._PUBLIC


@pytest.mark.parametrize("name", kcelectra.__all__)
def test_a_public_name_is_importable_from_where_it_is_defined(name):
    public = getattr(kcelectra, name)
    assert public is getattr(import_module(kcelectra._PUBLIC[name]), name)
    if name.isupper():  # a table
        assert public is vars(import_module(kcelectra._PUBLIC[name]))[name]
    else:
        assert (public.__module__, public.__name__) == (kcelectra._PUBLIC[name], name)
        assert public.__doc__
    assert name in dir(kcelectra)


def test_a_star_import_gives_all():
    names: dict[str, object] = {}
    exec("from kcelectra import *", names)
    assert set(names) - {"__builtins__"} == set(kcelectra.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'kcelectra' has no attribute 'cleen'"):
        kcelectra.cleen  # noqa: B018
    with pytest.raises(ImportError):
        from kcelectra import cleen  # noqa: F401


def test_the_version_is_that_of_pyproject():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == kcelectra.__version__ == version("kcelectra")


# cost


def modules_after(code: str) -> set[str]:
    program = f"{code}\nimport json, sys; print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(finished.stdout))


HEAVY = {"torch", "transformers", "datasets", "tokenizers", "pyarrow", "duckdb", "emoji", "soynlp"}


@pytest.mark.parametrize(
    "code",
    [
        "import kcelectra; dir(kcelectra)",
        "import kcelectra.corpus; dir(kcelectra.corpus)",
        "from kcelectra import clean; clean('좋아요'); clean('좋아요', 'corpus')",
        "from kcelectra.corpus.sample import generate_sample; list(generate_sample(10))",
    ],
)
def test_cleaning_imports_the_standard_library_alone(code):
    loaded = modules_after(code)
    assert "kcelectra" in loaded
    assert loaded - {"kcelectra"} <= sys.stdlib_module_names | modules_after("")


def test_cleaning_many_imports_numpy_alone():
    loaded = modules_after("from kcelectra import clean_batch; clean_batch(['좋아요'], 'corpus')")
    assert "numpy" in loaded
    assert not loaded & HEAVY


# who may know whom


def imports_of(module: str, source: str, *, is_package: bool = False) -> set[str]:
    """Return the modules of the package that a module imports, wherever in its text."""
    package = module if is_package else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            # a name may be a submodule: `from kcelectra.corpus import cleaning`
            found.update(f"{origin}.{alias.name}" for alias in node.names)
    return {name for name in found if name.split(".")[0] == "kcelectra"}


def part_of(module: str) -> str:
    """Return the second name: `corpus` of `kcelectra.corpus.cleaning`, nothing of `kcelectra` itself."""
    return module.partition(".")[2].partition(".")[0]


def forbidden(module: str, imported: set[str]) -> set[str]:
    part = part_of(module)
    return {name for name in imported if part_of(name) not in ALLOWED[part] | SHARED | {part}}


INNER_MODULES = [name for name in MODULES if name != "kcelectra"]


def test_every_module_has_a_part_with_a_rule():
    assert {part_of(name) for name in INNER_MODULES} <= ALLOWED.keys()
    assert {"kcelectra.corpus.cleaning", "kcelectra.pretraining.run", "kcelectra.release.report"} <= MODULES.keys()


def test_only_these_modules_are_shared():
    assert {path.stem for path in ROOT.glob("*.py")} == {"__init__", *SHARED_MODULES}


@pytest.mark.parametrize("module", INNER_MODULES)
def test_imports_go_one_way(module):
    path = MODULES[module]
    imported = imports_of(module, path.read_text(encoding="utf-8"), is_package=path.stem == "__init__")
    assert not forbidden(module, imported)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("kcelectra.finetuning.runner", "from kcelectra.pretraining.modeling import KcElectraForPreTraining"),
        ("kcelectra.pretraining.trainer", "import kcelectra.finetuning.tasks"),
        ("kcelectra.pretraining.trainer", "def late():\n    from kcelectra.finetuning import tasks"),
        ("kcelectra.pretraining.trainer", "from ..finetuning.tasks import TASKS"),
        ("kcelectra.pretraining.trainer", "from .. import finetuning"),
        ("kcelectra.corpus.cleaning", "from kcelectra import pretraining"),
        ("kcelectra.corpus.cleaning", "from kcelectra import clean"),
        ("kcelectra.release.report", "from kcelectra.pretraining.run import describe_run"),
        ("kcelectra.pretraining.run", "from kcelectra.release.report import write_report"),
        ("kcelectra.manifest", "from kcelectra.corpus.cleaning import clean"),
    ],
)
def test_a_forbidden_import_is_found(module, line):
    assert forbidden(module, imports_of(module, line))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("kcelectra.pretraining.streaming", "from kcelectra.corpus.vectorized import clean_batch"),
        ("kcelectra.pretraining.streaming", "from .packing import Packer"),
        ("kcelectra.release.report", "from kcelectra.finetuning.tasks import TASKS"),
        ("kcelectra.finetuning.runner", "from kcelectra.errors import InputError\nimport torch"),
    ],
)
def test_an_allowed_import_is_not_found(module, line):
    assert not forbidden(module, imports_of(module, line))
