"""A tokenizer's folder in both formats, with all the files that may lie in it."""

import json
from pathlib import Path

from fuzz import Kind

from sld.testbed.vocabulary import write_tokenizer
from sld.text.vocabulary import read_pad, read_vocabulary

TRAINED = "<fox-from-my-garden>"


def prepare(folder: Path) -> None:
    write_tokenizer(folder)
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    added = [{"id": len(ids), "content": TRAINED, "special": False}]
    whole = {"model": {"type": "BPE", "vocab": ids, "merges": merges}, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    (folder / "added_tokens.json").write_text(json.dumps({TRAINED: len(ids)}), encoding="utf-8")


def read(path: Path) -> None:
    """Read the tokenizer as a checkpoint's loading does; what is read is whole."""
    read_pad(path.parent, None)
    vocabulary = read_vocabulary(path.parent)
    assert list(vocabulary.ids.values()) == list(range(834)), "ids with a gap"
    assert all(first + second in vocabulary.ids for first, second in vocabulary.merges), "a merge that is no token"
    assert "fox</w>" in vocabulary.ids and "knife</w>" in vocabulary.ids, "words are lost"


KIND = Kind(prepare, read, tries=120, same_file=False)
