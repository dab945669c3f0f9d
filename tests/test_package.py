"""The house: layers, a light import, a small root."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import swsmix

ROOT = Path(swsmix.__file__).parent
LAYERS = [  # rooms, and modules of the heart; within a level none imports another
    {"_colors", "_finalisers", "_kmeans", "_log_odds"},
    {"selection", "schedule", "noise"},
    {"_files", "_labels", "_progress", "_shards"},
    {"mixture"},
    {"tables", "_histogram"},
    {"em"},
    {"start"},
    {"diagnosis"},
    {"attach"},
    {"prior"},
    {"bayes", "codec"},
    {"trainers", "training"},
    {"compression", "plots"},
    {"inspection", "problems"},
    {"guides"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES: dict[str, list[Path]] = {}  # module -> its file, or all files of a package
for path in sorted(ROOT.rglob("*.py")):
    FILES.setdefault(path.relative_to(ROOT).parts[0].removesuffix(".py"), []).append(path)
MODULES = sorted(FILES.keys() - {"__init__"})


def imports(tree, *, top_level=False):
    """Modules imported anywhere, or only by executing the module; type checking aside."""
    nodes = list(tree.body) if top_level else list(ast.walk(tree))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in nodes:
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def trees(module):
    return [ast.parse(path.read_text()) for path in FILES[module]]


def own_imports(module, **options):
    found = {name for tree in trees(module) for name in imports(tree, **options)}
    names = {n.split(".")[1] for n in found if n.startswith("swsmix.")}
    return names & set(MODULES) - {module}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_the_layers(module):
    assert module in LEVEL, "give the new module its layer"
    assert not {m for m in own_imports(module) if LEVEL[m] >= LEVEL[module]}


@pytest.mark.parametrize("module", MODULES)
def test_only_plots_imports_matplotlib_and_papers_are_never_imported(module):
    found = {n.split(".")[0] for tree in trees(module) for n in imports(tree)}
    assert "papers" not in found
    assert ("matplotlib" in found) == (module == "plots")


def test_the_root_import_is_light():
    heavy = [
        "matplotlib",
        "pyro",
        "scipy",
        "typer",
        "rich",
        "PIL",
        "pooch",
        "sklearn",
        "constriction",
    ]
    code = f"import sys, swsmix; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_name_of_the_root_loads_the_compiler_of_torch():
    # It doubles the time of the import. Torch's optimisers load it when one is made.
    code = (
        "import sys, swsmix\n"
        "for name in swsmix.__all__: getattr(swsmix, name)\n"
        "import torch\n"
        "prior = swsmix.MixturePrior(torch.nn.Linear(40, 50), 3)\n"
        "prior.em_step_(), prior.penalty().backward()\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_root_holds_about_ten_names_all_of_them_documented():
    assert len(swsmix.__all__) <= 12
    assert all(getattr(swsmix, name).__doc__ for name in swsmix.__all__)


def test_the_top_level_is_the_design_cards():
    project = ROOT.parent
    listed = subprocess.run(
        ["git", "ls-files"], cwd=project, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0 or not listed.stdout:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in listed.stdout.split()}
    allowed = {"pyproject.toml", "swsmix", "tests", "figures", "papers", "README.md"}
    assert {name for name in top if not name.startswith(".")} <= allowed


def test_the_source_archive_holds_the_whole_top_level():
    project = ROOT.parent
    settings = tomllib.loads((project / "pyproject.toml").read_text())
    sdist = settings["tool"]["hatch"]["build"]["targets"]["sdist"]
    needed = {f"/{name}" for name in ("swsmix", "tests", "papers", "figures", "README.md")}
    assert set(sdist["include"]) == needed and "exclude" not in sdist  # .gitignore has the rest


MAKERS = {
    *("tensor", "as_tensor", "asarray", "scalar_tensor", "tril_indices", "triu_indices"),
    *("zeros", "ones", "full", "empty", "eye", "arange", "linspace", "logspace"),
    *("rand", "randn", "randint", "randperm"),
}


def without(module, names, *keywords):
    """The calls of methods with these names that leave out one of the keywords."""
    return [
        ast.unparse(call)
        for tree in trees(module)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in names
        and not {*keywords} <= {keyword.arg for keyword in call.keywords}
    ]


@pytest.mark.parametrize("module", MODULES)
def test_every_new_tensor_names_its_dtype_and_device(module):
    # The user's defaults (bfloat16, meta) must not reach what swsmix makes.
    silent = without(module, MAKERS, "dtype", "device")
    assert not [call for call in silent if call.startswith("torch.")]


@pytest.mark.parametrize("module", MODULES)
def test_text_files_are_read_and_written_in_utf8_not_in_the_users_locale(module):
    assert not without(module, {"read_text", "write_text"}, "encoding")
