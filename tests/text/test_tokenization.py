"""Texts become the ids that the original tokenizers give them, and under their names those of other code.

`plain_ids` was compared with the tokenizers of the packages clip-anytorch 2.6.0 and open_clip_torch 3.3.0 on CLIP's own
vocabulary: equal on I2P's 4703 prompts; on the texts of `ODD` equal to OpenCLIP's, and to OpenAI's but where that also
replaces HTML's references, which the code that trained Stable Diffusion 1 does not.

Mutants seen to fail here: text as it is; HTML's references replaced for Stable Diffusion 1, or once only; lower case
before the repair; no lower case; CLIP's names of start and end in OpenCLIP; case minded between words; added tokens
split; transformers' reading without the model's padding; the end token lost in the original, or kept in the authors'
reading; the end that is cut counted alike in all of them.
"""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers_by_hand import END, ODD, plain_ids, with_pad
from transformers import CLIPTokenizer

from sld.models.text import Tokenizer
from sld.published import MINI
from sld.testbed.vocabulary import write_tokenizer
from sld.text.vocabulary import read_vocabulary

CLIP = MINI.texts[0]
OPENCLIP = replace(CLIP, activation="gelu", pad=0)
I2P = Path(__file__).parents[3] / "shared/data/i2p_benchmark.csv"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(made)
    return made


@pytest.mark.parametrize("text", ODD, ids=ascii)
@pytest.mark.parametrize("config", [CLIP, OPENCLIP], ids=["CLIP", "OpenCLIP"])
def test_odd_texts_have_the_ids_of_the_original(folder, config, text):
    tokenizer = Tokenizer.load(folder, replace(config, tokens=1000))
    ids = plain_ids(text, tokenizer.vocabulary.merges, config.openclip)

    start, end = config.vocabulary - 2, config.vocabulary - 1
    pad = end if config.pad is None else config.pad
    assert tokenizer([text])[0].tolist() == [start, *ids, end] + [pad] * (998 - len(ids))


@pytest.mark.parametrize("pad", ["!", END])
def test_transformers_reading_is_that_of_its_own_tokenizer(folder, tmp_path, pad):
    write_tokenizer(tmp_path)
    theirs = CLIPTokenizer.from_pretrained(str(with_pad(tmp_path, pad)))
    config = OPENCLIP if pad == "!" else CLIP

    ours = Tokenizer.load(folder, config, "transformers")(ODD)

    asked = {"padding": "max_length", "truncation": True, "max_length": config.tokens, "return_tensors": "pt"}
    assert (ours == theirs(list(ODD), **asked).input_ids).all()


def test_an_exclamation_mark_has_one_meaning_whatever_a_folder_pads_with(folder, tmp_path):
    write_tokenizer(tmp_path)
    marked = with_pad(tmp_path, "!")
    for tokenization in ("original", "transformers"):
        both = [Tokenizer.load(one, OPENCLIP, tokenization)(["wow! a knight!"]) for one in (folder, marked)]
        assert (both[0] == both[1]).all()
    own, theirs = (Tokenizer.load(folder, OPENCLIP, t)(["wow!"])[0].tolist() for t in ("original", "transformers"))
    assert own[-1] == theirs[-1] == 0 and own.count(256) == 1 and theirs.count(256) == 0


@pytest.mark.skipif(not I2P.exists(), reason="I2P's file is not there")
def test_101_of_i2ps_prompts_are_read_otherwise_by_transformers(folder):
    """All 4703 also have the ids of the packages named above, on CLIP's own vocabulary."""
    with I2P.open(encoding="utf-8", newline="") as file:
        prompts = [row["prompt"] for row in csv.DictReader(file)]
    theirs = CLIPTokenizer.from_pretrained(str(folder))(prompts, add_special_tokens=False).input_ids
    ours = Tokenizer.load(folder, CLIP)

    differ = [k for k, text in enumerate(prompts) if ours.ids(text) != theirs[k]]

    assert (len(prompts), len(differ)) == (4703, 101)
    merges = ours.vocabulary.merges
    assert all(ours.ids(prompts[k]) == plain_ids(prompts[k], merges) for k in differ[::10])


def test_a_text_that_is_too_long_keeps_the_end_token_but_in_the_authors_reading(folder):
    text = " ".join(["fox"] * 40)
    original, transformers, authors = (
        Tokenizer.load(folder, CLIP, reading) for reading in ("original", "transformers", "authors")
    )
    (fox,) = original.ids("fox")
    start, end = CLIP.vocabulary - 2, CLIP.vocabulary - 1

    assert original([text])[0].tolist() == transformers([text])[0].tolist() == [start, *[fox] * 30, end]
    assert authors([text])[0].tolist() == [start, *[fox] * 31]
    assert (original.cut(text), authors.cut(text)) == ("fox " * 9 + "fox", "fox " * 8 + "fox")
    for fits in ("", "a fox", " ".join(["fox"] * 30)):
        assert (authors([fits]) == original([fits])).all() and authors.cut(fits) == original.cut(fits) == ""
    assert original.cut(text + " “Été” 🦊") == "fox " * 10 + '" été " 🦊'


def test_added_tokens_are_read_whole_in_any_case(folder, tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<My-Fox>": 833, "sks": 834}')
    config = replace(CLIP, vocabulary=835)
    plain = Tokenizer.load(folder, CLIP).ids
    for tokenization in ("original", "transformers"):
        ids = Tokenizer.load(tmp_path, config, tokenization).ids("a <my-FOX> and sks")
        assert ids == [*plain("a"), 833, *plain("and"), 834]


def test_a_text_that_is_no_unicode_is_refused_and_so_is_an_unknown_tokenization(folder):
    with pytest.raises(ValueError, match=r"'caf\\udce9' cannot be written as UTF-8"):
        Tokenizer.load(folder, CLIP)(["a fox", "caf\udce9"])
    with pytest.raises(ValueError, match="did you mean 'original'"):
        Tokenizer(read_vocabulary(folder), CLIP, "orignal")
    with pytest.raises(ValueError, match=r"has 833 tokens, the text encoder expects 49408: give the tokenizer folder"):
        Tokenizer.load(folder, replace(CLIP, vocabulary=49408))
