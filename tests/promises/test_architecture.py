"""The rooms are as drawn: imports run down, start-up is light, tests mirror their sources."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from paths import ROOT

import qedit
from qedit.cache import errors

ROOMS = ("pipeline", "stages", "cache", "config")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_imports_run_down_the_stairs() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--config", "pyproject.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contracts_name_modules_that_exist() -> None:
    # a renamed stage must not slip out of its contract
    for contract in PROJECT["tool"]["importlinter"]["contracts"]:
        named = [*contract.get("modules", []), *contract.get("source_modules", [])]
        named += [name for name in contract.get("forbidden_modules", []) if "qedit" in name]
        for name in named:
            place = ROOT.joinpath(*name.split(".")[1:])
            assert place.is_dir() or place.with_suffix(".py").is_file(), name


def test_config_may_see_nothing_of_cache_but_its_errors_and_regular_files() -> None:
    (contract,) = (
        one
        for one in PROJECT["tool"]["importlinter"]["contracts"]
        if one.get("source_modules") == ["qedit.config"]
    )
    there = {path.name for path in (ROOT / "cache").iterdir() if (path / "__init__.py").is_file()}
    loose = {path.stem for path in (ROOT / "cache").glob("*.py")}
    assert loose == {"__init__", "errors", "regular_file"}
    assert set(contract["forbidden_modules"]) == {f"qedit.cache.{name}" for name in there}


def test_the_packages_listed_are_the_folders_there() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    there = {"qedit"} | {
        ".".join(("qedit", *init.parent.relative_to(ROOT).parts))
        for room in ROOMS
        for init in (ROOT / room).rglob("__init__.py")
    }
    assert listed == there
    without_init = {
        source.parent
        for room in ROOMS
        for source in (ROOT / room).rglob("*.py")
        if not (source.parent / "__init__.py").is_file()
    }
    assert without_init == set()


def test_no_stray_module_at_the_root_ends_up_in_the_wheel() -> None:
    assert [path.name for path in ROOT.glob("*.py")] == ["__init__.py"]


def test_the_checkout_under_test_is_this_one() -> None:
    assert Path(qedit.__path__[0]).resolve() == ROOT


def test_help_is_light() -> None:
    # what counts is what is imported: times on a busy machine say nothing
    script = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from qedit.pipeline.cli import main\n"
        "result = CliRunner().invoke(main, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'pyarrow', 'zarr',"
        " 'pydantic', 'tqdm'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_errors_at_a_glance_are_the_errors_there_are() -> None:
    tree = re.findall(r"(?m)^[ │├└─]*(\w+) +(\d)   ", str(errors.__doc__))
    assert dict(tree) == {
        name: str(kind.exit_code)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.QeditError)
    }


def test_only_atomic_renames_and_syncs() -> None:
    calls = re.compile(r"\b(os\.(rename|replace|fsync|link)|\.rename|shutil\.move)\(")
    for room in ROOMS:
        for source in (ROOT / room).rglob("*.py"):
            if source.relative_to(ROOT).as_posix() == "cache/files/atomic.py":
                continue
            found = calls.search(source.read_text(encoding="utf-8"))
            assert found is None, f"{source}: {found}"


def test_nothing_is_ever_unpickled() -> None:
    unsafe = re.compile(
        r"\b(pickle|cloudpickle|dill)\b|(?<!safetensors\.)torch\.(load|save)\(|weights_only=False|trust_remote_code"
    )
    for room in ROOMS:
        for source in (ROOT / room).rglob("*.py"):
            found = unsafe.search(source.read_text(encoding="utf-8"))
            assert found is None, f"{source}: {found}"


def test_no_file_has_the_name_of_a_standard_module() -> None:
    names = {path.stem for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert names & sys.stdlib_module_names <= {"__init__", "__main__"}


def test_the_wheel_holds_what_is_shipped_as_data() -> None:
    for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{package}: nothing matches {pattern}"


@pytest.mark.parametrize(
    "name", ["run.json", "metrics.jsonl", "pytorch_lora_weights.safetensors", "index.html"]
)
def test_a_file_that_several_rooms_read_is_named_in_one(name: str) -> None:
    naming = {
        source.relative_to(ROOT).as_posix()
        for source, node in _nodes()
        if isinstance(node, ast.Constant) and node.value == name
    }
    assert len(naming) == 1, naming


def test_the_scale_of_a_lora_is_computed_in_one_place() -> None:
    def ends(node: ast.expr) -> str:
        inner = node.args[0] if isinstance(node, ast.Call) and node.args else node
        return ast.unparse(inner).rpartition(".")[2].removeprefix("lora_")

    dividing = [
        source.relative_to(ROOT).as_posix()
        for source, node in _nodes()
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
        if (ends(node.left), ends(node.right)) == ("alpha", "rank")
    ]
    assert dividing == ["stages/models/lora/lora_file.py"]


def _nodes() -> Iterator[tuple[Path, ast.AST]]:
    for room in ROOMS:
        for source in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
                yield source, node


def test_every_test_stands_where_its_source_does() -> None:
    """tests/a/b/test_x_more.py tests a/b/x.py or the folder a/b/x; only promises are of no file."""
    tests = ROOT / "tests"
    homeless = []
    for test in tests.rglob("test_*.py"):
        room, name = test.parent.relative_to(tests), test.stem.removeprefix("test_")
        sources = {path.stem.strip("_") for path in (ROOT / room).glob("*")} - {"init", "pycache"}
        if room != Path("promises") and not any(f"{name}_".startswith(f"{s}_") for s in sources):
            homeless.append(str(test.relative_to(ROOT)))
    assert homeless == []


def _names_in(module: Path) -> set[str]:
    """The names that a module defines or imports."""
    names: set[str] = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return names


@pytest.mark.parametrize(
    "script", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.stem
)
def test_benchmarks_import_what_is_there(script: Path) -> None:
    # nothing else runs them, so a renamed function would go unnoticed
    folders = (script.parent, ROOT / "benchmarks", ROOT / "tests/support")
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        package, *path = node.module.split(".")
        places = [ROOT.joinpath(*path)] if package == "qedit" else [f / package for f in folders]
        homes = [place.with_suffix(".py") for place in places]
        home = next((home for home in homes if home.is_file()), None)
        if home is not None:
            assert {alias.name for alias in node.names} <= _names_in(home), f"{node.module}: {home}"
        elif package == "qedit":
            for alias in node.names:
                module = places[0] / alias.name
                assert module.with_suffix(".py").is_file() or module.is_dir(), module
        else:
            assert find_spec(package) is not None, f"{script}: there is no module {package}"


# Words that begin a noun clause ("What ...", "Whether ...") instead of a sentence with a verb.
NOUN_CLAUSES = [
    "As",
    "For",
    "How",
    "Of",
    "So",
    "That",
    "Those",
    "What",
    "When",
    "Where",
    "Whether",
    "Which",
    "Who",
    "Why",
]


def test_docstrings_begin_with_what_a_thing_does() -> None:
    clauses = []
    for source in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                words = (ast.get_docstring(node) or "").split(maxsplit=1)
                if words and words[0] in NOUN_CLAUSES:
                    name = getattr(node, "name", source.stem)
                    clauses.append(f"{source.relative_to(ROOT)}: {name}: {words[0]} ...")
    assert clauses == []
