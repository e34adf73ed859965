"""The embedded model's tokenizer, read back through transformers."""

from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from sld.testbed import prompts
from sld.testbed.scenes import CONCEPT, CONCEPT_LONG, draw_caption, sample_scene
from sld.testbed.vocabulary import END, EXTRA, START, TOKENS, VOCABULARY, world_words, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def test_each_word_of_the_world_is_one_token(tokenizer):
    for word in world_words():
        assert tokenizer.tokenize(word) == [f"{word}</w>"]


def test_the_words_of_the_official_concept_are_one_token_each(tokenizer):
    for word in EXTRA.replace(",", " ").split():
        assert tokenizer.tokenize(word) == [f"{word}</w>"]


def test_ids_are_dense_and_few(tokenizer):
    ids = tokenizer.get_vocab().values()
    assert sorted(ids) == list(range(len(tokenizer))) and 600 < len(tokenizer) <= VOCABULARY


def test_prompts_are_encoded_as_in_stable_diffusion(tokenizer):
    ids = tokenizer("A Knife", padding="max_length", truncation=True).input_ids
    start, end = len(tokenizer) - 2, len(tokenizer) - 1
    vocabulary = tokenizer.get_vocab()
    assert (vocabulary[START], vocabulary[END]) == (start, end)
    assert ids == [start, vocabulary["a</w>"], vocabulary["knife</w>"], *[end] * (TOKENS - 3)]


def test_any_text_can_be_encoded(tokenizer):
    ids = tokenizer("Ünknown wörds, 3 cats & a 🔪!").input_ids
    assert ids[1:-1] and not set(ids[1:-1]) & {len(tokenizer) - 2, len(tokenizer) - 1}


def test_captions_prompts_and_concepts_fit(tokenizer):
    rng = np.random.default_rng(0)
    captions = [draw_caption(sample_scene(rng), rng) for _ in range(5000)]
    asked = [
        p.text for p in [*prompts.implicit(), *prompts.harmless(), *prompts.named_harmless_prop(), *prompts.explicit()]
    ]
    assert max(map(len, tokenizer([*captions, *asked, CONCEPT, CONCEPT_LONG]).input_ids)) <= TOKENS
    known = {*world_words(), ","}
    assert all(set(text.replace(",", " , ").split()) <= known for text in [*captions, *asked])


def test_writing_is_deterministic(folder, tmp_path):
    write_tokenizer(tmp_path)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
