"""The files of a run.

Mutants seen to fail here: checksum not compared, header not compared, lock shared, order of
configurations not compared, the holder noted in the lock's own file.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from sld.evaluation.store import (
    agree,
    chunk_path,
    locked,
    read_chunk,
    read_embeddings,
    write_chunk,
    write_embeddings,
)

HEADER = {"run": "abc", "chunk": 7}
RECORDS = [{"row": 1, "text": "Zdzisław\n❤"}, {"row": 2, "score": 0.1 + 0.2}]


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
