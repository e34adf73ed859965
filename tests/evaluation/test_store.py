"""The files of a run.

Mutants seen to fail here: checksum not compared, header not compared, lock shared, order of configurations not
compared, the holder noted in the lock's own file, chunks split by str.splitlines, half a line of the log read, or gone
on with, a log that cannot be written stops the run, a speed of no seconds, a foreign file taken for a chunk, a protocol
of another form let through.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from sld.evaluation.store import (
    Session,
    agree,
    chunk_files,
    chunk_path,
    locked,
    log_session,
    read_chunk,
    read_embeddings,
    read_protocol,
    sessions,
    write_chunk,
    write_embeddings,
)

HEADER = {"run": "abc", "chunk": 7}
RECORDS = [
    {"row": 1, "text": "Zdzisław\n❤ \u2028\u2029\x85\x0b\x0c\x1c"},
    {"row": 2, "score": 0.1 + 0.2, "detail": "half a character: \ud83d"},
]


def test_a_chunk_comes_back_exactly(tmp_path):
    write_chunk(chunk_path(tmp_path, 7), HEADER, RECORDS)

    assert read_chunk(tmp_path / "000007.jsonl", HEADER) == RECORDS


def test_a_chunk_that_is_cut_off_or_changed_anywhere_is_not_read(tmp_path):
    path = tmp_path / "chunk"
    write_chunk(path, HEADER, RECORDS)
    whole = path.read_bytes()

    for k in range(len(whole)):
        path.write_bytes(whole[:k])
        assert read_chunk(path, HEADER) is None
        path.write_bytes(whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1 :])
        assert read_chunk(path, HEADER) is None


def test_a_chunk_of_another_run_is_not_read(tmp_path):
    write_chunk(tmp_path / "chunk", HEADER, RECORDS)

    assert read_chunk(tmp_path / "chunk", {**HEADER, "run": "other"}) is None


def test_a_score_that_is_no_number_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError):
        write_chunk(tmp_path / "chunk", HEADER, [{"score": float("nan")}])

    assert list(tmp_path.iterdir()) == []


def test_a_second_run_on_a_folder_is_refused_until_the_first_is_gone(tmp_path):
    script = (
        "import sys; from pathlib import Path; from sld.evaluation.store import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        told = f"another run works in .*process {other.pid} on {os.uname().nodename}"
        with pytest.raises(ValueError, match=told), locked(tmp_path):
            pass
        other.kill()
    with locked(tmp_path):
        pass


def test_a_changed_protocol_is_refused_with_what_differs(tmp_path):
    before = {"images": 2, "configurations": {"off": {"steps": 50}, "max": {"steps": 50}}, "keep": "none"}
    agree(tmp_path, before)
    agree(tmp_path, before)

    now = {"images": 2, "configurations": {"off": {"steps": 25}, "max": {"steps": 50}}, "extra": [1]}
    with pytest.raises(ValueError) as error:
        agree(tmp_path, now)
    assert "configurations.off.steps: 50 before, 25 now" in str(error.value)
    assert 'keep: "none" before, absent now' in str(error.value) and "extra: absent before, [1] now" in str(error.value)
    assert json.loads((tmp_path / "protocol.json").read_text()) == before


def test_a_run_of_the_first_edition_is_not_gone_on_with(tmp_path):
    """Its protocol holds exact_batch in place of numerics. Mutant: the remedy for any other protocol."""
    agree(tmp_path, {"images": 2, "model": {"name": "mini", "exact_batch": True}})

    with pytest.raises(ValueError) as error:
        agree(tmp_path, {"images": 2, "model": {"name": "mini", "numerics": "invariant"}})
    assert 'model.numerics: absent before, "invariant" now' in str(error.value)
    assert "exact_batch was true in the first edition (nearest to numerics invariant)" in str(error.value)
    assert "name another folder" in str(error.value)


def test_another_order_of_configurations_is_another_protocol(tmp_path):
    agree(tmp_path, {"configurations": {"off": 1, "max": 2}})

    with pytest.raises(ValueError, match="order of configurations"):
        agree(tmp_path, {"configurations": {"max": 2, "off": 1}})


def test_embeddings_come_back_and_a_changed_one_is_found(tmp_path):
    records = [{"configuration": "off", "row": 3, "image": k} for k in range(3)]
    vectors = {("off", 3, 0): torch.randn(8), ("off", 3, 2): torch.randn(8)}
    noted = write_embeddings(tmp_path, 5, records, vectors)

    first, none, last = read_embeddings(tmp_path, 5, noted)
    assert none is None and first.equal(vectors["off", 3, 0]) and last.equal(vectors["off", 3, 2])
    path = tmp_path / "embeddings" / "000005.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert read_embeddings(tmp_path, 5, noted) is None
    path.write_bytes(content[:-4])
    assert read_embeddings(tmp_path, 5, noted) is None


def test_a_log_with_half_a_line_is_read_and_gone_on_with(tmp_path):
    """A full disk leaves half a line; no result rests on the log."""
    path = tmp_path / "sessions.jsonl"
    log_session(tmp_path, {"command": "sld evaluate", "began": 1})
    path.write_bytes(path.read_bytes() + b'{"pictures": 12, "sec')
    log_session(tmp_path, {"pictures": 12, "seconds": 3.0, "processes": 1})
    log_session(tmp_path, {"pictures": 12, "seconds": 0.0})

    assert sessions(tmp_path) == [Session("sld evaluate"), Session(pictures=12, seconds=3.0)]
    assert sessions(tmp_path)[-1].speed == 4.0 and sessions(tmp_path)[0].speed is None


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"null\n[1]\n", b'{"command": 3}\n{"pictures": "many", "seconds": 1}\n']
)
def test_a_damaged_log_says_nothing_and_stops_nothing(tmp_path, content):
    (tmp_path / "sessions.jsonl").write_bytes(content)
    assert sessions(tmp_path) == []


def test_a_log_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "sessions.jsonl").mkdir()
    with pytest.warns(UserWarning, match=r"sessions\.jsonl cannot be written .*the run goes on"):
        log_session(tmp_path, {"command": "sld evaluate"})
    assert sessions(tmp_path) == []


def test_what_is_no_chunk_is_left_alone_with_a_notice(tmp_path):
    about = {"configurations": {"off": {}, "max": {}}, "images": 2, "prompts": {"rows": 5}, "chunk": 8}
    (tmp_path / "chunks").mkdir()
    names = ["000000.jsonl", "000002.jsonl", "._000000.jsonl", "000001 (copy).jsonl", "000099.jsonl", "1.jsonl", "x"]
    for name in names:
        (tmp_path / "chunks" / name).touch()
    with pytest.warns(UserWarning, match=r"no chunk of this run.*000001 \(copy\)\.jsonl.* and 2 more"):
        found = chunk_files(tmp_path, about)
    assert {number: path.name for number, path in found.items()} == {0: names[0], 2: names[1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("null", "expected an object, as runs write it; got null"),
        ("[" * 5000, "is no JSON that can be read"),
        ("{", "is no JSON"),
        ("{}", "prompts is missing"),
        ('{"prompts": 3}', "prompts must be a table; got 3"),
    ],
    ids=["null", "deep", "cut", "empty", "number"],
)
def test_a_protocol_of_another_form_is_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "protocol.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_protocol(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "protocol.json")) and "\n" not in str(caught.value)
    if not content.startswith('{"') and content != "{}":  # of those, agree says what differs
        with pytest.raises(ValueError, match=message):
            agree(tmp_path, {"images": 2})
