"""Embeddings make the features that diffusers' load_textual_inversion makes, and their words are read as a whole.

Mutants seen to fail here: the first of several vectors alone; of two words the shorter one first; SDXL's two
sets of vectors exchanged.
"""

import copy

import pytest
import torch
from changed import tiny_pipeline
from reference_xl import xl_pipeline
from safetensors.torch import save_file

import sld
from sld.checkpoints import CheckpointError
from sld.models.text import Tokenizer
from sld.published import MINI
from sld.testbed.vocabulary import write_tokenizer
from sld.text.vocabulary import read_vocabulary

PROMPTS = ["a <cat> on a mat", "two <cat><cat> at the beach"]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    write_tokenizer(folder := tmp_path_factory.mktemp("words"))
    return folder


@pytest.fixture(scope="module")
def made(words, tmp_path_factory):
    pipe = tiny_pipeline(words)
    pipe.save_pretrained(folder := tmp_path_factory.mktemp("made") / "model")
    return folder, pipe


def vectors(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def write(kind, x, folder):
    """An embedding in one of the formats in which they are published, for <cat>."""
    if kind == "learned_embeds.bin":
        torch.save({"<cat>": x}, folder / kind)
    elif kind == "learned_embeds.safetensors":
        save_file({"<cat>": x}, folder / kind)
    elif kind == "webui.pt":
        about = {"string_to_token": {"*": 265}, "name": "<cat>", "step": 499, "sd_checkpoint": None}
        torch.save({**about, "string_to_param": {"*": torch.nn.Parameter(x)}}, folder / kind)
    elif kind == "original.pt":  # textual inversion's own code
        parameters = torch.nn.ParameterDict({"<cat>": torch.nn.Parameter(x)})
        torch.save({"string_to_token": {"<cat>": torch.tensor(265)}, "string_to_param": parameters}, folder / kind)
    else:
        save_file({"emb_params": x}, folder / kind)
    return folder / kind


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("learned_embeds.bin", (32,)),
        ("learned_embeds.safetensors", (3, 32)),
        ("webui.pt", (2, 32)),
        ("original.pt", (1, 32)),
        ("<cat>.safetensors", (1, 32)),
    ],
)
def test_an_embedding_makes_the_features_of_diffusers(kind, shape, made, tmp_path):
    folder, pipe = made
    file = write(kind, vectors(*shape), tmp_path)
    reference = copy.deepcopy(pipe)
    # diffusers reads this format in files that the WebUI has written again
    reference.load_textual_inversion({"<cat>": vectors(*shape)} if kind == "original.pt" else file, token="<cat>")

    found = sld.load(folder, tokenization="transformers", changes={"embedding": str(file)})

    theirs, _ = reference.encode_prompt(PROMPTS, "cpu", 1, False)
    assert torch.equal(found.encode(PROMPTS).tokens, theirs.detach())
    plain = sld.load(folder, tokenization="transformers")
    assert not torch.equal(plain.encode(PROMPTS).tokens, found.encode(PROMPTS).tokens)
    no_cat = ["a fox"]
    assert torch.equal(plain.encode(no_cat).tokens, found.encode(no_cat).tokens)


def test_an_embedding_of_sdxl_has_vectors_for_both_text_encoders(words, tmp_path):
    pipe = xl_pipeline(words)
    pipe.save_pretrained(tmp_path / "xl")
    state = {"clip_g": vectors(2, 32) / 2, "clip_l": vectors(2, 32)}
    save_file(state, file := tmp_path / "style.safetensors")
    for key, number in (("clip_l", ""), ("clip_g", "_2")):
        parts = {name: getattr(pipe, name + number) for name in ("text_encoder", "tokenizer")}
        pipe.load_textual_inversion({"<cat>": state[key]}, **parts)

    found = sld.load(tmp_path / "xl", tokenization="transformers", changes={"embedding": f"{file}:<cat>"})

    tokens, _, pooled, _ = pipe.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    cond = found.encode(PROMPTS)
    assert torch.equal(cond.tokens, tokens.detach()) and torch.equal(cond.pooled, pooled.detach())


def test_several_embeddings_have_words_of_their_own(made, tmp_path):
    files = [write("learned_embeds.bin", vectors(2, 32), tmp_path), write("webui.pt", vectors(32), tmp_path)]
    pipe = sld.load(made[0], changes={"embedding": [str(files[0]), f"{files[1]}:<dog>"]})
    assert pipe.tokenizers[0].ids("<dog> <CAT>") == [835, 833, 834]
    told = [(record["token"], record["vectors"]) for record in pipe.unusual["changes"]]
    assert told == [("<cat>", 2), ("<dog>", 1)]


@pytest.mark.parametrize("tokenization", ["original", "transformers"])
def test_words_are_read_as_a_whole_the_longest_first(tokenization, words):
    vocabulary = read_vocabulary(words).with_word("<cat>", 3, words).with_word("<cat>s", 1, words)
    tokenizer = Tokenizer(vocabulary, MINI.texts[0], tokenization)
    cat, cats = [833, 834, 835], [836]
    assert tokenizer.ids("<cat><CAT>s a<cat>") == [*cat, *cats, *Tokenizer(vocabulary, MINI.texts[0]).ids("a"), *cat]
    assert tokenizer.ids("<cat>_1") == [834]
    plain = Tokenizer(read_vocabulary(words), MINI.texts[0], tokenization)
    assert plain.ids("a fox, at < the beach >") == tokenizer.ids("a fox, at < the beach >")


@pytest.mark.parametrize("word", ["fox", "Fox", "a", "<|endoftext|>", "<cat>"])
def test_a_word_that_is_there_is_refused(word, words):
    vocabulary = read_vocabulary(words).with_word("<cat>", 2, words)
    with pytest.raises(ValueError, match=r"a\.pt: its word .*is a token already.*a\.pt:<"):
        vocabulary.with_word(word, 1, words / "a.pt")


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"<cat>": (32,), "<dog>": (32,)}, "is an embedding.*the vectors of one word"),
        ({"<cat>": (2, 768)}, "vectors of <cat> have 768 features, and tokens of this model 32"),
        ({"clip_l": (2, 32), "clip_g": (2, 32)}, "clip_l and clip_g were made for SDXL"),
        ({"clip_l": (2, 32), "clip_g": (3, 32)}, r"clip_g has the shape \(3, 32\)"),
        ({"<cat>": (0, 32)}, r"<cat> has the shape \(0, 32\)"),
        ({"<cat>": (2, 2, 2)}, "expected vectors"),
        ({"<cat>": (75, 32)}, "holds 75 vectors, and a prompt has room for 30"),
        ({}, r"holds 0 tensors"),
        ({"lora_unet_a.lora_up.weight": (2, 2), "lora_unet_a.alpha": (1,)}, "is a LoRA"),
    ],
)
def test_what_is_no_embedding_for_the_model_is_refused_by_file_and_key(tensors, says, made, tmp_path):
    save_file({key: torch.ones(shape) for key, shape in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=rf"a\.safetensors.*{says}"):
        sld.load(made[0], changes={"embedding": str(tmp_path / "a.safetensors")})
