"""A tokenizer's files are read whole, or refused by their name before anything slow happens.

Mutants seen to fail here: ids not compared with the merges; tokens without an id; merges of what is no token; other
merges in tokenizer.json; another padding left as it is; begin and end of other names; pointers of Git LFS read as text;
lost merges taken for fillers.
"""

import json
import shutil

import pytest
from transformers import CLIPTokenizer

from sld.testbed.vocabulary import write_tokenizer
from sld.text.vocabulary import find_vocabulary, read_pad, read_vocabulary, write_pad

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "tokenizer"
    write_tokenizer(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "tokenizer")


def changed(folder, name, change):
    """Change the values of a JSON file."""
    path = folder / name
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


def as_one_file(folder, pairs=list):
    """Write tokenizer.json in the place of vocab.json and merges.txt, with merges as lists or as text."""
    vocabulary = read_vocabulary(folder)
    model = {"vocab": dict(vocabulary.ids), "merges": [pairs(pair) for pair in vocabulary.merges]}
    added = [{"content": "<|endoftext|>", "id": 832, "special": True}]
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}), encoding="utf-8")
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()


@pytest.mark.parametrize("pairs", [list, " ".join], ids=["lists", "text"])
def test_both_formats_hold_the_same_vocabulary(whole, folder, pairs):
    as_one_file(folder, pairs)
    one, two = read_vocabulary(whole), read_vocabulary(folder)
    assert (one.ids, one.merges, one.added) == (two.ids, two.merges, two.added)


def test_line_ends_of_another_system_and_a_byte_order_mark_change_nothing(whole, folder):
    for name, mark in (("merges.txt", b""), ("vocab.json", b"\xef\xbb\xbf")):
        (folder / name).write_bytes(mark + (folder / name).read_bytes().replace(b"\n", b"\r\n"))
    assert read_vocabulary(folder).ids == read_vocabulary(whole).ids


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a Git LFS pointer, not the file: run 'git lfs pull'"),
        (b"\xff\xfe\x00", "is not UTF-16"),
        (b"\xff", "is not UTF-8"),
    ],
    ids=["pointer", "half", "bytes"],
)
def test_a_file_that_is_none_is_named(folder, name, content, message):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as raised:
        read_vocabulary(folder)
    assert str(raised.value).startswith(str(folder / name))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "vocab.json",
            lambda text: text[: len(text) // 2],
            r"vocab.json is no JSON.*: copy the tokenizer",
        ),
        ("vocab.json", lambda text: "", r"vocab.json is no JSON.*: copy the tokenizer"),
        ("vocab.json", lambda text: "[1]", r"vocab.json must hold a table here; got \[1\]"),
        ("vocab.json", lambda text: "[" * 10**5, r"vocab.json is no JSON.*: copy the tokenizer"),
        ("vocab.json", lambda text: text.replace("fox</w>", "fax</w>"), r"'fax</w>' has the id \d+, which does not"),
        (
            "vocab.json",
            lambda text: text.replace('"!": 0', '"!": "0"'),
            r"the id of '!' must be a whole number",
        ),
        ("vocab.json", lambda text: text.replace('"!": 0', '"!": 1'), r"'!' has the id 1, .* they give it 0"),
        ("vocab.json", lambda text: text.replace('"!": 0,', ""), r"lacks 1 tokens of its merges, such as '!'"),
        ("merges.txt", lambda text: text[: len(text) // 2].rpartition("\n")[0], r"which does not follow from the \d+"),
        ("merges.txt", lambda text: "", r"which does not follow from the 0 merges"),
        ("merges.txt", lambda text: "x" * 10 + "\n", r"merges.txt: merge 1 must be two tokens; got 'xxxxxxxxxx'"),
        ("merges.txt", lambda text: text + "a b c\n", r"merges.txt: merge \d+ must be two tokens; got 'a b c'"),
        ("merges.txt", lambda text: text.replace("o n</w>", "on< /w>"), r"are merged, and are no tokens"),
        ("special_tokens_map.json", lambda text: "null", r"special_tokens_map.json must hold a table"),
        ("tokenizer_config.json", lambda text: '{"pad_token": 3}', r"pad_token must be a token; got 3"),
        (
            "tokenizer_config.json",
            lambda text: '{"bos_token": {"content": "<s>"}}',
            r"bos_token is '<s>', in CLIP",
        ),
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(folder, name, change, message):
    path = folder / name
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as raised:
        read_vocabulary(folder)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named_with_the_way_to_get_it(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing.*--tokenizer"):
        read_vocabulary(folder)


def test_two_formats_in_a_folder_must_agree(folder, whole):
    as_one_file(folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(whole / name, folder)
    assert read_vocabulary(folder).ids == read_vocabulary(whole).ids

    def without_the_last(values):
        values["model"]["merges"].pop()
        last = next(token for token, k in values["model"]["vocab"].items() if k == 830)
        del values["model"]["vocab"][last]
        values["model"]["vocab"].update({"<|startoftext|>": 830, "<|endoftext|>": 831})
        return {"model": values["model"]}

    changed(folder, "tokenizer.json", without_the_last)
    with pytest.raises(ValueError, match=r"tokenizer.json and .*merges.txt hold different merges"):
        read_vocabulary(folder)


def test_added_tokens_follow_without_a_gap(folder):
    (folder / "added_tokens.json").write_text('{"<fox>": 834}')
    with pytest.raises(ValueError, match="'<fox>' has the id 834"):
        read_vocabulary(folder)
    (folder / "added_tokens.json").write_text('{"<fox>": 833}')
    assert read_vocabulary(folder).added == ("<fox>",)


def test_tokens_that_no_merge_could_make_fill_a_vocabulary_up_and_lost_merges_do_not(folder):
    def filled(ids):
        words = sorted(ids, key=ids.__getitem__)
        return {word: k for k, word in enumerate([*words[:-2], *(f"filler{n}" for n in range(50)), *words[-2:]])}

    before = read_vocabulary(folder)
    changed(folder, "vocab.json", filled)
    after = read_vocabulary(folder)
    assert after.merges == before.merges and len(after.ids) == len(before.ids) + 50
    assert after.ids["<|endoftext|>"] == len(after.ids) - 1
    (folder / "merges.txt").write_text("".join((folder / "merges.txt").read_text().splitlines(keepends=True)[:-9]))
    with pytest.raises(ValueError, match="does not follow from the"):
        read_vocabulary(folder)


def test_a_folder_is_looked_for_with_the_checkpoint(folder, tmp_path):
    file = tmp_path / "model.safetensors"
    assert find_vocabulary(tmp_path).source == find_vocabulary(file).source == folder
    assert find_vocabulary(tmp_path / "elsewhere" / "model.safetensors") is None
    with pytest.raises(ValueError, match=r"nowhere: there is no such folder for a tokenizer: pass a folder"):
        find_vocabulary(file, tmp_path / "nowhere")
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(ValueError, match=r"vocab.json is missing"):
        find_vocabulary(file)


def test_what_a_folder_pads_with_needs_an_id(folder):
    changed(folder, "special_tokens_map.json", lambda values: {**values, "pad_token": {"content": "!"}})
    assert read_pad(folder, usual=None) == 0
    changed(folder, "special_tokens_map.json", lambda values: {**values, "pad_token": "[pad]"})
    with pytest.raises(ValueError, match=r"vocab.json has no id for '\[pad\]', with which the tokenizer pads"):
        read_pad(folder, usual=None)


@pytest.mark.parametrize("one_file", [False, True])
def test_a_folder_can_be_made_to_pad_as_a_model_does(folder, tmp_path, one_file):
    if one_file:  # as transformers writes it
        CLIPTokenizer.from_pretrained(str(folder)).save_pretrained(folder := tmp_path / "saved")
        assert not (folder / "vocab.json").exists()
    for pad, token in ((0, "!"), (None, "<|endoftext|>")):
        write_pad(folder, pad)
        assert read_pad(folder, usual=7) == pad
        assert CLIPTokenizer.from_pretrained(str(folder)).pad_token == token
