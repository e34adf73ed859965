"""The documents say what is so: examples run as they stand, and what is named exists.

Seen to fail: a file that was moved, a class that was renamed, a link to a page that is gone, an example with an old
name, a list of pages without one of them.
"""

from __future__ import annotations

import pkgutil
import re
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from documents import DOCUMENTS, ROOT, examples
from PIL import Image

import sld
from sld.testbed.vocabulary import write_tokenizer

FOLDERS = ("sld", "tests", "docs", "notebooks", "weights", "sweeps", "benchmarks", ".ci")

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=[str(d.relative_to(ROOT)) for d in DOCUMENTS])


def run(blocks: list[str], name: str, **given: Any) -> dict[str, Any]:
    """What is defined after the blocks have run one after another, with the names given from the beginning."""
    space: dict[str, Any] = {"__name__": "example", **given}
    for block in blocks:
        exec(compile(block, name, "exec", dont_inherit=True), space)
    return space


def test_ten_lines_of_python_run_as_they_stand():
    (block,) = examples(ROOT / "README.md")
    made = run([block], "README.md")

    assert made["images"].shape == (2, 3, 64, 64)
    assert [type(picture) for picture in made["pictures"]] == [Image.Image]


def test_the_page_on_numerics_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = run(examples(ROOT / "docs" / "numerics.md"), "numerics.md")

    assert made["text"].shape == (1, 4, 16, 16)
    torch.testing.assert_close(made["alone"], made["text"])
    *_, ours = made["pipe"].sample("a bear in a graveyard", seeds=1)
    assert torch.equal(made["last"].x, ours.x)
    clean, changed, blended = made["clean"], made["changed"].x, made["blended"].x
    assert not torch.equal(changed, clean)
    assert torch.equal(blended[..., :8], clean[..., :8]) and not torch.equal(blended[..., 8:], clean[..., 8:])
    with pytest.raises(ValueError, match="numerics='reference', with which any network runs"):
        replace(made["theirs"], numerics="fast")


def test_the_page_on_diffusers_runs_as_it_stands(tmp_path, monkeypatch):
    """Its modular pipeline is a tiny Stable Diffusion 3; its stock one has the embedded model, as ours has."""
    pytest.importorskip("diffusers")
    from reference_modular import KINDS, modular

    monkeypatch.chdir(tmp_path)
    write_tokenizer(tmp_path / "words")
    stock, blocks, *_ = KINDS["SD 3"]
    pipe = modular(stock(tmp_path / "words"), blocks)
    made = run(examples(ROOT / "docs" / "diffusers.md"), "diffusers.md", pipe=pipe)

    options = {"safety": "strong", "concept": "unsafe, death", "steps": 10}
    (ours,) = sld.load()("a bear in a graveyard", seeds=3, **options)
    assert made["picture"].tobytes() == ours.tobytes()
    assert made["latents"].isfinite().all() and made["again"].config == made["guider"].config
    assert made["other"].num_conditions == 4


@every_document
def test_every_file_that_a_document_names_exists(document):
    text = document.read_text(encoding="utf-8")
    folders = "|".join(re.escape(folder) for folder in FOLDERS)
    named = set(re.findall(rf"(?<![\w/.])(?:{folders})/[\w./*-]*[\w/]", text))
    shown = set(re.findall(r"\]\((?!https?:)([^)#]+)", text))
    alone = set(re.findall(r"`(\w+\.(?:py|css|html\.jinja))`", text))

    missing = sorted(
        chain(
            (path for path in named if not (ROOT / path).exists() and "NAME" not in path),
            (path for path in shown if not (document.parent / path).exists()),
            (name for name in alone if not any(any((ROOT / folder).rglob(name)) for folder in FOLDERS)),
        )
    )
    assert not missing, f"{document.name} names what does not exist: {', '.join(missing)}"


@every_document
def test_every_name_of_the_package_in_a_document_is_there(document):
    text = document.read_text(encoding="utf-8")
    for name in sorted(set(re.findall(r"`(sld(?:\.\w+)+)", text))):
        assert there(name), f"{document.name} names {name}, which does not exist"


def there(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_the_list_of_documents_names_every_page():
    listed = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(re.findall(r"\]\(([\w./]+)\)", listed))
