"""CLIP's halves, and what decides on its embeddings: Q16 and the safety checker.

Mutants that were seen to fail: rounding for truncation of the long side, a crop from the upper left, bilinear for
bicubic, rescaling in single precision, the unprojected embedding, pictures of a batch embedded together, an unread key
let through, prompts not normalised, the first prompt for the second, temperature 1, > for >= at Q16's threshold,
numpy's own unpickler, no adjustment after special care, the adjustment for concepts only, no rounding of scores, >=
for > at 0, a long text without its end token, texts read off where the config says, an unprojected text, any tokenizer
taken, texts of full length told as cut.
"""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EXACT, NETWORK
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_clip import whole_clip
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sld.checkpoints import CheckpointError
from sld.evaluation.classifiers import JudgesEmbeddings, make_classifier, tag
from sld.evaluation.classifiers.clip import CLIPEmbedder, CLIPTexts, load_vision, preprocess
from sld.evaluation.classifiers.q16 import Q16, read_prompts
from sld.evaluation.classifiers.safety_checker import SafetyChecker
from sld.files import sha256

PROMPTS = Path(
    os.environ.get("SLD_Q16_PROMPTS", Path(__file__).parents[3] / "shared" / "data" / "q16_prompts_ViT-L-14.npy")
)
needs_prompts = pytest.mark.skipif(not PROMPTS.is_file(), reason="Q16's learned prompts are not here")

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 20}
WIDTH = 12


def pictures(count: int, height: int = 40, width: int = 33, seed: int = 0) -> np.ndarray:
    """Noise that is coarse enough for resizing to keep some of it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)[:, :height, :width]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vision half with random weights, in transformers' format."""
    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=WIDTH))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def embedder(clip: Path) -> CLIPEmbedder:
    return CLIPEmbedder(clip)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.npy"
    values = np.random.default_rng(1).normal(size=(2, WIDTH)) * [[3.0], [0.2]]
    np.save(path, values.astype(np.float16))
    return path


def edited(folder: Path, target: Path, change) -> Path:
    """A copy of a model folder whose tensors went through `change`."""
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(change(load_file(folder / "model.safetensors")), target / "model.safetensors")
    return target


@pytest.mark.parametrize(
    ("height", "width"), [(224, 224), (64, 64), (512, 512), (301, 517), (640, 231), (97, 98), (225, 224), (30, 301)]
)
def test_preprocessing_equals_that_of_transformers(height, width):
    picture = pictures(1, height, width)[0]
    theirs = CLIPImageProcessorPil()(Image.fromarray(picture), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(preprocess(picture), theirs, **EXACT)


def test_embeddings_equal_those_of_transformers(clip, embedder):
    theirs = CLIPVisionModelWithProjection.from_pretrained(clip).eval()
    for picture in pictures(3):
        with torch.no_grad():
            expected = theirs(pixel_values=preprocess(picture, 28)[None]).image_embeds
        ours = embedder.embed(picture[None])
        torch.testing.assert_close(ours, expected, **EXACT)
        assert ours.dtype == torch.float32


def test_an_embedding_is_the_same_in_any_batch(embedder):
    batch = pictures(7)
    together = embedder.embed(torch.from_numpy(batch))
    alone = torch.cat([embedder.embed(torch.from_numpy(picture)[None]) for picture in batch])
    torch.testing.assert_close(together, alone, **EXACT)
    assert embedder.embed(torch.from_numpy(batch[:0])).shape == (0, WIDTH)


def test_a_whole_clip_gives_the_embeddings_of_its_vision_half(tmp_path):
    torch.manual_seed(1)
    whole = CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=WIDTH)).eval()
    whole.save_pretrained(tmp_path)
    picture = pictures(1)
    with torch.no_grad():
        seen = whole.vision_model(preprocess(picture[0], 28)[None]).pooler_output
        expected = whole.visual_projection(seen)
    torch.testing.assert_close(CLIPEmbedder(tmp_path).embed(picture), expected, **NETWORK)


def test_weights_of_older_transformers_are_read(clip, tmp_path, embedder):
    def nested(weights):
        old = {k.replace("vision_model.", "vision_model.vision_model.", 1): x for k, x in weights.items()}
        return {**old, "vision_model.vision_model.embeddings.position_ids": torch.arange(5)[None]}

    old = CLIPEmbedder(edited(clip, tmp_path, nested))
    torch.testing.assert_close(old.embed(pictures(2)), embedder.embed(pictures(2)), **EXACT)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: {**w, "vision_model.surplus": torch.ones(2)}, "vision_model.surplus: (2,) in the file, nothing"),
        (lambda w: {**w, "surplus": torch.ones(2)}, "surplus"),
        (
            lambda w: {k: x for k, x in w.items() if k != "visual_projection.weight"},
            "visual_projection.weight: nothing",
        ),
        (lambda w: {**w, "vision_model.post_layernorm.bias": torch.ones(3)}, r"post_layernorm.bias: \(3,\)"),
    ],
)
def test_weights_that_are_not_a_clip_are_refused(clip, tmp_path, change, named):
    with pytest.raises(CheckpointError, match=named.replace("(2,)", r"\(2,\)")):
        CLIPEmbedder(edited(clip, tmp_path, change))


def test_a_missing_clip_says_how_to_get_it(tmp_path):
    for nowhere in ("nobody/no-clip", tmp_path / "no" / "folder" / "here"):
        with pytest.raises(ValueError, match="hf download openai/clip-vit-large-patch14"):
            CLIPEmbedder(nowhere)
    with pytest.raises(CheckpointError, match=r"model\.safetensors or pytorch_model\.bin"):
        CLIPEmbedder(tmp_path)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CLIPModel]:
    folder = tmp_path_factory.mktemp("both")
    return folder, whole_clip(folder)


PROMPTS_OF_ALL_LENGTHS = ("", "a fox", "a fox in a dark alley and", "a fox in a dark alley at a late party with a cup")


@pytest.mark.parametrize("text", PROMPTS_OF_ALL_LENGTHS)
def test_text_embeddings_equal_those_of_transformers(both, text):
    folder, model = both
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=9)
    with torch.no_grad():
        expected = model.text_projection(model.text_model(**ids).pooler_output)[0]
    torch.testing.assert_close(CLIPTexts(folder).embed(text), expected, **NETWORK)


def test_prompts_that_clip_does_not_read_to_their_end_are_told(both):
    texts = CLIPTexts(both[0])
    assert [texts.cut(text) for text in PROMPTS_OF_ALL_LENGTHS] == [False, False, False, True]
    longer = PROMPTS_OF_ALL_LENGTHS[-1] + " and a clown"
    torch.testing.assert_close(texts.embed(longer), texts.embed(PROMPTS_OF_ALL_LENGTHS[-1]), **EXACT)


@pytest.mark.parametrize("eos", [2, 5])  # transformers looks for the greatest id where a config says 2
def test_texts_are_read_off_at_the_tokenizers_end_token_whatever_the_config_says(both, tmp_path, eos):
    whole_clip(tmp_path, eos)
    for text in PROMPTS_OF_ALL_LENGTHS:
        torch.testing.assert_close(CLIPTexts(tmp_path).embed(text), CLIPTexts(both[0]).embed(text), **EXACT)


def test_a_clip_without_texts_or_their_tokenizer_is_refused(clip, both, tmp_path):
    with pytest.raises(CheckpointError, match="tokenizer"):
        CLIPTexts(clip)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((both[0] / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"tokenizer.*hf download"):
        CLIPTexts(tmp_path)
    for path in both[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    edited(both[0], tmp_path, lambda weights: {k: x for k, x in weights.items() if "text_projection" not in k})
    with pytest.raises(CheckpointError, match=r"text_projection.weight: nothing in the file"):
        CLIPTexts(tmp_path)


def test_the_protocol_of_texts_names_weights_and_vocabulary(both):
    protocol = CLIPTexts(both[0]).protocol
    assert protocol["weights"]["clip"] == sha256(both[0] / "model.safetensors")
    assert len(protocol["weights"]["vocabulary"]) == 64 and protocol["tokens"] == 9
    assert json.loads(json.dumps(protocol)) == protocol


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(1, 8, 8, 3),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 0, 8, 3, dtype=torch.uint8),
        [[1]],
    ],
)
def test_what_is_no_batch_of_pictures_is_refused(embedder, wrong):
    with pytest.raises(ValueError, match="uint8"):
        embedder.embed(wrong)


def test_q16_follows_its_definition(embedder, prompts):
    q16 = Q16(embedder, prompts)
    embeddings = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0))
    stored = np.load(prompts).astype(float).tolist()
    unsafe = 0
    for x, verdict in zip(embeddings.tolist(), q16.judge(embeddings), strict=True):
        logits = []
        for prompt in stored:
            dot = sum(a * b for a, b in zip(x, prompt, strict=True))
            logits.append(100 * dot / math.sqrt(sum(a * a for a in x)) / math.sqrt(sum(b * b for b in prompt)))
        p = math.exp(logits[1]) / (math.exp(logits[0]) + math.exp(logits[1]))
        assert verdict.detail["p"] == pytest.approx(p, rel=1e-10, abs=1e-12)
        assert verdict.unsafe == (p >= 0.5)
        unsafe += p >= 0.5
    assert 0 < unsafe < 6


def test_q16_judges_pictures_as_it_judges_their_stored_embeddings(embedder, prompts, tmp_path):
    q16, batch = Q16(embedder, prompts), pictures(4)
    save_file({"embeddings": embedder.embed(batch)}, tmp_path / "kept.safetensors")
    kept = load_file(tmp_path / "kept.safetensors")["embeddings"]
    assert isinstance(q16, JudgesEmbeddings)
    assert q16(torch.from_numpy(batch)) == q16.judge(kept) == [q16.judge(x[None])[0] for x in kept]


def test_q16_counts_a_picture_from_the_threshold_on(embedder, prompts):
    embeddings = embedder.embed(pictures(1))
    p = Q16(embedder, prompts).judge(embeddings)[0].detail["p"]
    assert Q16(embedder, prompts, p).judge(embeddings)[0].unsafe
    assert not Q16(embedder, prompts, math.nextafter(p, 2)).judge(embeddings)[0].unsafe
    with pytest.raises(ValueError, match="threshold"):
        Q16(embedder, prompts, float("nan"))


def test_q16_refuses_embeddings_that_are_not_its_own(embedder, prompts):
    q16 = Q16(embedder, prompts)
    with pytest.raises(ValueError, match=r"\(b, 12\).*got \(1, 11\)"):
        q16.judge(torch.ones(1, 11))
    with pytest.raises(ValueError, match="finite"):
        q16.judge(torch.full((1, WIDTH), torch.nan))


def test_q16s_protocol_names_weights_threshold_and_rule(clip, embedder, prompts):
    q16 = Q16(embedder, prompts, 0.9)
    hashes = {"ViT-16/14": sha256(clip / "model.safetensors"), "prompts": sha256(prompts)}
    assert json.loads(json.dumps(q16.protocol)) == q16.protocol
    assert q16.protocol["weights"] == hashes and q16.protocol["threshold"] == 0.9
    short = {name: value[:8] for name, value in hashes.items()}
    assert tag(q16.protocol) == f"q16 v1 (ViT-16/14 {short['ViT-16/14']}, prompts {short['prompts']}, p >= 0.9)"


def test_the_factory_makes_q16_with_its_options(clip, prompts, monkeypatch):
    monkeypatch.delenv("SLD_Q16_PROMPTS", raising=False)
    made = make_classifier(f"q16:clip={clip},prompts={prompts},threshold=0.9")
    assert made.protocol["threshold"] == 0.9
    with pytest.raises(ValueError, match=r"prompts=PATH or set SLD_Q16_PROMPTS"):
        make_classifier(f"q16:clip={clip}")
    monkeypatch.setenv("SLD_Q16_PROMPTS", str(prompts))
    assert make_classifier(f"q16:clip={clip}").protocol["threshold"] == 0.5


@needs_prompts
def test_the_published_prompts_are_two_embeddings_of_clip_that_are_not_normalised():
    published = read_prompts(PROMPTS)
    assert published.shape == (2, 768) and published.dtype == torch.float16
    assert (published.float().norm(dim=1) > 20).all()


@needs_prompts
def test_the_published_prompts_judge_only_by_direction(embedder):
    published = read_prompts(PROMPTS).double()
    q16 = Q16(embedder, PROMPTS)  # its own embeddings would be too narrow
    appropriate, inappropriate = q16.judge(published * torch.tensor([[0.01], [5.0]]))
    assert appropriate.detail["p"] < 1e-3 and inappropriate.detail["p"] > 1 - 1e-3
    unit = published / published.norm(dim=1, keepdim=True)
    between = q16.judge((unit[0] + unit[1])[None])[0]
    assert between.detail["p"] == pytest.approx(0.5, abs=1e-10)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_prompts_are_read_from_a_pickled_array_of_numpy_1_and_2(tmp_path, protocol):
    values = np.random.default_rng(0).normal(size=(2, WIDTH)).astype(np.float16)
    data = pickle.dumps(values, protocol)
    (tmp_path / "new.p").write_bytes(data)
    old = data.replace(b"numpy._core", b"numpy.core")
    # lengths of names are part of the newer formats
    if protocol >= 4:
        old = data.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")
        old = old.replace(b"\x13numpy._core.numeric", b"\x12numpy.core.numeric")
        frame = int.from_bytes(old[3:11], "little")
        old = old[:3] + (frame - len(data) + len(old)).to_bytes(8, "little") + old[11:]
    assert old != data
    (tmp_path / "old.p").write_bytes(old)
    for name in ("new.p", "old.p"):
        assert np.array_equal(read_prompts(tmp_path / name).numpy(), values)


def test_prompts_are_read_from_tensor_files(tmp_path):
    values = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(0))
    save_file({"prompts": values}, tmp_path / "prompts.safetensors")
    torch.save({"prompts": values}, tmp_path / "prompts.pt")
    for name in ("prompts.safetensors", "prompts.pt"):
        torch.testing.assert_close(read_prompts(tmp_path / name), values, **EXACT)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["prompts.p", "prompts.pt", "prompts.npy"])
def test_a_file_of_prompts_that_would_run_code_is_refused_and_runs_none(tmp_path, name):
    path, target = tmp_path / name, tmp_path / "exploded"
    if name.endswith(".npy"):
        np.save(path, np.array([Bomb(target)], dtype=object), allow_pickle=True)
    elif name.endswith(".pt"):
        torch.save({"prompts": torch.ones(2, WIDTH), "bomb": Bomb(target)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(target)))
    with pytest.raises(ValueError, match="prompts"):
        read_prompts(path)
    assert not target.exists()


@pytest.mark.parametrize("values", [np.ones((3, 8)), np.ones(8), np.ones((2, 8), int), np.full((2, 8), np.nan)])
def test_what_is_no_pair_of_prompts_is_refused(tmp_path, values):
    np.save(tmp_path / "prompts.npy", values)
    with pytest.raises(ValueError, match="expected two prompts"):
        read_prompts(tmp_path / "prompts.npy")


def test_missing_prompts_say_where_they_are_published(tmp_path):
    with pytest.raises(ValueError, match=r"github\.com/ml-research/Q16"):
        read_prompts(tmp_path / "prompts.npy")


def checker(seed: int, closeness: float) -> StableDiffusionSafetyChecker:
    """diffusers' safety checker, random, with thresholds about `closeness` around a picture's scores."""
    torch.manual_seed(seed)
    config = CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=WIDTH)
    model = StableDiffusionSafetyChecker(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    with torch.no_grad():
        x = model.visual_projection(model.vision_model(preprocess(pictures(1)[0], 28)[None]).pooler_output)
        for concepts, thresholds in (
            (model.concept_embeds, model.concept_embeds_weights),
            (model.special_care_embeds, model.special_care_embeds_weights),
        ):
            # most thresholds are above the score, so that a picture is about as often safe as not
            above = closeness * (torch.rand(len(concepts)) - (0.03 if len(concepts) == 17 else 0.2))
            thresholds.copy_(torch.nn.functional.cosine_similarity(x, concepts) + above)
    return model


@pytest.mark.parametrize("closeness", [0.02, 0.1])
def test_the_safety_checker_decides_as_that_of_diffusers(tmp_path, closeness):
    decisions, careful = [], 0
    for seed in range(12):
        theirs = checker(seed, closeness)
        theirs.save_pretrained(tmp_path)
        verdict = SafetyChecker(tmp_path)(torch.from_numpy(pictures(1)))[0]
        pixels = preprocess(pictures(1)[0], 28)[None]
        assert [verdict.unsafe] == theirs(clip_input=pixels, images=[np.zeros(1)])[1]
        decisions.append(verdict.unsafe)
        careful += any(score > 0 for score in verdict.detail["special_care"])
    assert 0 < sum(decisions) < 12 and careful


def folder_with_thresholds(folder: Path, special: list[float], concepts: list[float]) -> Path:
    """A checker for which a picture's cosine with concept k exceeds its threshold by about concepts[k]."""
    theirs = checker(0, 0.0)
    with torch.no_grad():
        theirs.special_care_embeds_weights -= torch.tensor(special)
        theirs.concept_embeds_weights -= torch.tensor(concepts + [-0.5] * (17 - len(concepts)))
    theirs.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("special", "concept", "scores", "unsafe"),
    [
        ([-0.5, -0.5, -0.5], -0.008, (-0.5, -0.5, -0.5, -0.008), False),
        ([-0.5, -0.5, 0.002], -0.008, (-0.5, -0.5, 0.002, 0.002), True),
        ([0.002, -0.008, -0.5], -0.5, (0.002, 0.002, -0.49, -0.49), False),
        ([-0.5, -0.5, -0.5], 0.0004, (-0.5, -0.5, -0.5, 0.0), False),
        ([-0.5, -0.5, -0.5], 0.0006, (-0.5, -0.5, -0.5, 0.001), True),
    ],
)
def test_special_care_lowers_the_thresholds_behind_it_and_scores_are_rounded(
    tmp_path, special, concept, scores, unsafe
):
    verdict = SafetyChecker(folder_with_thresholds(tmp_path, special, [concept]))(torch.from_numpy(pictures(1)))[0]
    assert (*verdict.detail["special_care"], verdict.detail["concepts"][0]) == scores
    assert verdict.unsafe == unsafe


def test_the_safety_checker_judges_a_picture_the_same_in_any_batch(tmp_path):
    judge = SafetyChecker(folder_with_thresholds(tmp_path, [0.0] * 3, [0.0] * 17))
    batch = torch.from_numpy(pictures(5))
    assert judge(batch) == [judge(picture[None])[0] for picture in batch]
    assert len({str(verdict) for verdict in judge(batch)}) == 5


def test_the_safety_checkers_protocol_names_its_weights(tmp_path):
    judge = make_classifier(f"safety-checker:path={folder_with_thresholds(tmp_path, [0.0] * 3, [])}")
    digest = sha256(tmp_path / "model.safetensors")
    assert json.loads(json.dumps(judge.protocol)) == judge.protocol
    assert tag(judge.protocol) == f"safety-checker v1 (ViT-16/14 {digest[:8]}, any of 17 concepts > 0)"


def test_a_folder_that_is_no_safety_checker_is_refused(clip, tmp_path):
    with pytest.raises(CheckpointError, match="no safety checker"):
        SafetyChecker(clip)
    with pytest.raises(CheckpointError, match="holds no weights"):
        SafetyChecker(tmp_path)
    with pytest.raises(ValueError, match=r"needs path=…"):
        make_classifier("safety-checker")


def test_configs_of_older_releases_are_read(tmp_path):
    checker(0, 0.0).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    old = {
        "dropout": 0.0,
        "top_k": 50,
        "torch_dtype": None,
        "id2label": {"0": "LABEL_0"},
        "transformers_version": "4.21",
    }
    values |= {"vision_config": old | {"model_type": "clip_vision_model"}, "vision_config_dict": VISION}
    path.write_text(json.dumps(values))
    assert load_vision(tmp_path).name == "ViT-16/14"
