"""Arrows between the modules of sld point down: who may import whom, checked on the source of every module.

An import counts wherever it stands: at the top, in a function, or under TYPE_CHECKING. A name such as
"sld.testbed.judge:Embedded" in a table is no import: what it names is looked up as a user's function is.

Mutants seen to fail here: `import sld.testbed` in a function of the evaluation, `from sld import ablation` in the
evaluation, a new module at the top, an exception that is no longer needed.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import sld

ROOT = Path(sld.__file__).parent

NAMES = ("spelling", "reading", "data", "config", "published", "choices")
BOTTOM = ("arguments", "embedded", "files", "finite", "hub", "lazy", "printable", *NAMES)
PARTS = ("models", "samplers", "guidance", "text", "checkpoints")
PIPELINE = ("devices", "images", "noise", "starting", "image_to_image", "state", "step", "speed", "pipeline", "loading")
REQUESTS = ("request", "batching")
CORE = (*BOTTOM, *PARTS, *PIPELINE, *REQUESTS)

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("arguments", "embedded", "files", "finite", "hub", "lazy", "printable", "spelling"), ()),
    **{name: NAMES[:k] for k, name in enumerate(NAMES)},
    "models": (*BOTTOM, "text"),
    "samplers": BOTTOM,
    "guidance": (*BOTTOM, "samplers.process"),  # it knows no network, and of samplers only the noise levels
    "text": BOTTOM,
    "checkpoints": (*BOTTOM, "models", "text"),
    "speed": (*BOTTOM, "models", "guidance"),
    "devices": (),
    **dict.fromkeys(("images", "noise", "starting"), BOTTOM),
    "image_to_image": (*BOTTOM, "models", "samplers", "speed", "noise", "starting"),
    "state": (*BOTTOM, "samplers", "guidance"),
    "step": (*BOTTOM, "samplers", "guidance"),
    "pipeline": (*BOTTOM, *PARTS, "speed", "images", "noise", "image_to_image", "state", "step"),
    "loading": (*BOTTOM, *PARTS, "devices", "speed", "pipeline"),
    "request": (*BOTTOM, *PARTS, *PIPELINE),
    "batching": (*BOTTOM, *PARTS, *PIPELINE, "request"),
    "plotting": BOTTOM,
    "evaluation": (*CORE, "plotting"),
    "explain": (*CORE, "plotting", "evaluation"),
    "ablation": (*CORE, "plotting", "evaluation"),
    "adapters": CORE,
    "testbed": (*CORE, "adapters", "plotting", "evaluation", "explain", "ablation"),
    "cli": (*CORE, "plotting", "evaluation", "explain", "ablation"),
    "__main__": ("cli",),
    "": CORE,  # sld/__init__.py, which imports when a name is asked for; everybody may import it for the version
}
"""Package or module of sld -> what it may import besides itself: a package, or one module of it with a dot."""


def modules(root: Path) -> dict[str, Path]:
    """Every module below `root` by its dotted name without the package's own: "samplers.ddim", "" for the package."""
    named = {".".join(path.relative_to(root).with_suffix("").parts): path for path in root.rglob("*.py")}
    return {name.removesuffix("__init__").removesuffix("."): path for name, path in sorted(named.items())}


def imports(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of sld that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here, write 'from sld. … import'"
            # from sld.package import module, or a name out of a module
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("sld.") in known else str(node.module) for name in inside]
        yield from (name.removeprefix("sld").removeprefix(".") for name in names if name.split(".")[0] == "sld")


def arrows(root: Path) -> set[tuple[str, str]]:
    """Every (module, what it imports), both of sld."""
    known = modules(root)
    return {(name, target) for name, path in known.items() for target in imports(path, known)}


def points_down(name: str, target: str) -> bool:
    """Whether MAY_IMPORT has the import, or it stays inside one package."""
    own, other = name.split(".")[0], target.split(".")[0]
    return target == "" or own == other or any(x in (other, target) for x in MAY_IMPORT[own])


def upward(root: Path) -> set[tuple[str, str]]:
    return {(name, target) for name, target in arrows(root) if not points_down(name, target)}


def without_a_place(root: Path) -> list[str]:
    return sorted({name.split(".")[0] for name in modules(root)} - set(MAY_IMPORT))


def test_every_module_has_its_place():
    assert not (new := without_a_place(ROOT)), (
        f"{', '.join(new)} of sld has no line in MAY_IMPORT: add one that says what it may import, as little as it "
        "needs, and name it in the lines of those that may import it"
    )


def test_every_package_is_installed():
    """The list in pyproject.toml is that of the tree; an editable install works without it, a plain one does not."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {".".join(path.parent.relative_to(ROOT.parent).parts) for path in ROOT.rglob("__init__.py")}
    data = {"sld.evaluation.sets", "sld.weights"}
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(packages | data)


def test_arrows_point_down():
    found = upward(ROOT)
    assert not found, "imports that MAY_IMPORT does not allow; turn them round, or put what both need below both:\n" + (
        "\n".join(f"  sld.{name} imports sld.{target}" for name, target in sorted(found))
    )


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("evaluation/a.py", "import sld.testbed.scenes"),
        ("evaluation/a.py", "def f():\n    from sld.testbed import scenes"),
        ("evaluation/a.py", "from sld import ablation"),
        ("evaluation/a.py", "from sld.explain.runs import Run as R"),
        ("evaluation/classifiers/a.py", "import sld.cli"),
        ("guidance/a.py", "from sld.samplers.ddim import DDIM"),
        ("guidance/a.py", "from sld.models import unet"),
        ("samplers/a.py", "if TYPE_CHECKING:\n    from sld.guidance.base import Guidance"),
        ("files.py", "import sld.config"),
        ("models/a.py", "from sld.speed.keys import KeyedUNet"),
        ("testbed/a.py", "import sld.cli"),
        ("cli/a.py", "import sld.testbed.fit"),
        ("a.py", ""),
    ],
)
def test_an_import_that_points_up_is_found_wherever_it_stands(file, line, tmp_path):
    for name in ("ablation", "testbed", "explain", "guidance", "models", "samplers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "samplers" / "process.py").touch()
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    allowed = "import torch, sld.files\nfrom sld import __version__\n" if file != "files.py" else ""
    (tmp_path / file).write_text(f"{allowed}{line}\n")
    wrong = without_a_place(tmp_path) or upward(tmp_path)
    assert len(wrong) == 1


def test_guidance_may_know_noise_levels(tmp_path):
    for name in ("guidance", "samplers"):
        (tmp_path / name).mkdir()
    (tmp_path / "samplers" / "process.py").touch()
    (tmp_path / "guidance" / "a.py").write_text(
        "from sld.samplers import process\nfrom sld.samplers.process import Process\nimport sld.samplers.process\n"
    )
    assert upward(tmp_path) == set()
