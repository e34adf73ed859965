"""diffusers stays optional.

Mutants that failed here: diffusers imported by the package's own module; the message left out.
"""

import ast
import importlib
import sys
from pathlib import Path

import pytest

import sld
import sld.adapters


def imported(path):
    """The first parts of all names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        yield from (name.split(".")[0] for name in names)


def test_nothing_but_its_adapter_imports_diffusers():
    root = Path(sld.__file__).parent
    users = {str(path.relative_to(root)) for path in root.rglob("*.py") if "diffusers" in imported(path)}
    assert users == {"adapters/diffusers.py"}


def test_without_diffusers_its_adapter_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setitem(sys.modules, "diffusers.configuration_utils", None)
    monkeypatch.delitem(sys.modules, "sld.adapters.diffusers", raising=False)
    monkeypatch.delattr(sld.adapters, "diffusers", raising=False)
    with pytest.raises(ImportError, match=r"sld.adapters.diffusers needs diffusers .* pip install 'sld\[diffusers\]'"):
        importlib.import_module("sld.adapters.diffusers")
