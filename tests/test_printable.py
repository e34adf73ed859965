"""Text from outside in documents.

Mutants seen to fail here: only ASCII's control characters, DEL or surrogates left out, line breaks of Unicode kept, the
narrow space of numbers taken for a line break.
"""

import xml.etree.ElementTree as ElementTree

import pytest

from sld.printable import REPLACEMENT, one_line, printable, spreadsheet_text


def test_every_character_that_is_kept_stands_in_well_formed_xml():
    for code in (*range(0x300), *range(0x2000, 0x2100), *range(0xD7F0, 0xE010), 0xFFFD, 0xFFFE, 0xFFFF, 0x1F9DF):
        kept = printable(chr(code))
        assert kept in (chr(code), REPLACEMENT)
        escaped = kept.replace("&", "&amp;").replace("<", "&lt;")
        assert len(ElementTree.fromstring(f"<a>{escaped}</a>".encode()).text) == 1


@pytest.mark.parametrize("text", ["\x00", "\x07", "\x1b", "\x7f", "\x9b", "\ud800", "\uffff"])
def test_control_characters_are_replaced(text):
    assert printable(f"a{text}b") == one_line(f"a{text}b") == f"a{REPLACEMENT}b"


def test_other_text_is_kept():
    text = "Löwe, 猫, \N{ZOMBIE}, 12\N{NARROW NO-BREAK SPACE}345\N{NO-BREAK SPACE}% \N{MINUS SIGN}1"
    assert printable(text) == one_line(text) == text
    assert printable("a\n\tb") == "a\n\tb"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\t", "\v", "\f", "\x1d", "\x85", "\u2028", "\u2029", "\n\n"])
def test_one_line_is_one_line(end):
    assert len(one_line(f"a{end}b").splitlines()) == 1
    assert one_line(f"a{end}b") == "a b"


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+1", "-1", "\t=1", "\u2028=1"])
def test_a_spreadsheet_runs_no_text_as_a_formula(text):
    assert spreadsheet_text(text) == f"'{one_line(text)}"
    assert spreadsheet_text(f"a{text}") == one_line(f"a{text}")
