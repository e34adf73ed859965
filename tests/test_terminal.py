"""What a terminal cannot show is escaped, an output that is closed ends quietly, and work goes on.

Mutants seen to fail here: output left strict; a closed output left None; the reader's end passed on.
"""

import io
import os
import sys

import pytest

from sld.cli import main

PROMPTS = "prompt,categories\n猫と🦊,Ünïcode\n"


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text(PROMPTS, encoding="utf-8")
    return path


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_the_terminal_cannot_show_is_escaped(prompts, encoding, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))

    main(["prompts", str(prompts)])

    shown = {"ascii": b"\\xdcn\\xefcode", "cp1252": b"\xdcn\xefcode", "utf-8": "Ünïcode".encode()}
    assert shown[encoding] in written.getvalue()


def test_a_closed_output_is_no_error(prompts, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    main(["prompts", str(prompts)])
    assert sys.stdout.name == os.devnull


def test_the_end_of_the_reader_is_no_error(prompts, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as output:
        monkeypatch.setattr(sys, "stdout", output)
        main(["prompts", str(prompts)])
        output.write("and no error when the process ends")
