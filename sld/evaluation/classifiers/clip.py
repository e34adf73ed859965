"""CLIP's embeddings of pictures and prompts, as transformers computes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from sld.checkpoints import CheckpointError
from sld.checkpoints.files import open_weights
from sld.data import read
from sld.evaluation.classifiers.base import checked
from sld.files import sha256
from sld.printable import one_line
from sld.reading import read_json
from sld.text.tokenization import original
from sld.text.vocabulary import END, START, Vocabulary, read_vocabulary

HUB_CLIP = "openai/clip-vit-large-patch14"
VERSION = "1"
"""Version of the preprocessing and of the choice of the embedding."""

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_FILES = ("model.safetensors", "pytorch_model.bin")
_HALVES = {"vision": ("vision_model.", "visual_projection."), "text": ("text_model.", "text_projection.")}
_BOTH = (*_HALVES["vision"], *_HALVES["text"], "logit_scale")
Half = Literal["vision", "text"]

_SIZES = {768: "B", 1024: "L", 1280: "H"}


@dataclass(frozen=True)
class Vision:
    """The image half of a CLIP.

    Attributes:
        model: transformer and projection, float32, in eval mode.
        name: as in the CLIP paper, such as "ViT-L/14".
        size: side in pixels of the transformer's input.
        width: number of features of an embedding.
        beside: other tensors of the file, by key, on the CPU.
        sha256: of the file.
        device: where the model is.
    """

    model: nn.Module
    name: str
    size: int
    width: int
    beside: Mapping[str, Tensor]
    sha256: str
    device: torch.device

    @torch.no_grad()
    def embed(self, picture: np.ndarray) -> Tensor:
        """Return the projected embedding (d,), on the CPU and not normalised, of a picture uint8 (H, W, 3)."""
        pixels = preprocess(picture, self.size)
        return self.model(pixel_values=pixels[None].to(self.device)).image_embeds[0].cpu()


class CLIPEmbedder:
    """Projected image embeddings of CLIP, one picture at a time.

    Attributes:
        protocol: the network and its preprocessing.
        width: number of features of an embedding.
    """

    def __init__(self, clip: str | Path = HUB_CLIP, device: str | torch.device = "cpu") -> None:
        """
        Args:
            clip: a folder with config.json and weights, or the name of a model in the hub's cache.
            device: where the network runs.

        Raises:
            ValueError: there is no such model, or it is no CLIP; the message says how to get one.
        """
        self._vision = vision = load_vision(find_clip(clip), device)
        if vision.beside:
            raise CheckpointError(f"{clip} is not a plain CLIP: it also holds {', '.join(list(vision.beside)[:4])}")
        self.width = vision.width
        self.protocol: Mapping[str, Any] = {
            "embedder": "clip",
            "version": VERSION,
            "weights": {vision.name: vision.sha256},
            "size": vision.size,
        }

    def embed(self, pictures: Tensor | np.ndarray) -> Tensor:
        """Return embeddings float32 (b, d), on the CPU and not normalised, of pictures uint8 (b, H, W, 3)."""
        array = checked(pictures)
        embeddings = torch.empty(len(array), self._vision.width)
        for k, picture in enumerate(array):
            embeddings[k] = self._vision.embed(picture)
        return embeddings


class CLIPTexts:
    """Projected text embeddings of CLIP, one prompt at a time, which is read as CLIP was trained to read it.

    Attributes:
        protocol: the network and its vocabulary.
    """

    def __init__(self, clip: str | Path = HUB_CLIP, device: str | torch.device = "cpu") -> None:
        """
        Args:
            clip: a folder with config.json, weights and tokenizer, or the name of a model in the hub's cache.
            device: where the network runs.

        Raises:
            ValueError: there is no such model, or it is no CLIP of both halves; the message says how to get one.
        """
        folder = find_clip(clip)
        path = _weights_file(folder)
        weights, beside = _read_weights(path, "text")
        if beside:
            raise CheckpointError(f"{clip} is not a plain CLIP: it also holds {', '.join(list(beside)[:4])}")
        config = cast(CLIPTextConfig, _read_config(folder / "config.json", "text"))
        if (projection := weights.get("text_projection.weight")) is not None:
            config.projection_dim = len(projection)
        vocabulary = _read_tokenizer(folder, config.vocab_size)
        self._start, self._end = vocabulary.ids[START], vocabulary.ids[END]
        self._tokenize = original(vocabulary, openclip=config.hidden_act == "gelu")
        config.eos_token_id = self._end  # the position of the embedding; older configs name another token
        with torch.device("meta"):
            model = CLIPTextModelWithProjection(config)
        _fill(cast(nn.Module, model), weights, path)
        embeddings = model.text_model.embeddings
        self._tokens = config.max_position_embeddings
        embeddings.register_buffer("position_ids", torch.arange(self._tokens)[None], persistent=False)
        self._device = torch.device(device)
        self._model = cast(nn.Module, model).to(self._device).eval().requires_grad_(False)
        words = json.dumps(sorted(vocabulary.ids.items()))
        self.protocol: Mapping[str, Any] = {
            "embedder": "clip-text",
            "version": VERSION,
            "weights": {"clip": sha256(path), "vocabulary": hashlib.sha256(words.encode()).hexdigest()},
            "tokens": self._tokens,
        }

    @torch.no_grad()
    def embed(self, text: str) -> Tensor:
        """Return the projected embedding (d,) of a text, on the CPU and not normalised. A long text is cut."""
        ids = self._ids(text)
        ids = [*ids[: self._tokens - 1], ids[-1]] if self.cut(text) else ids
        return self._model(input_ids=torch.tensor([ids], device=self._device)).text_embeds[0].cpu()

    def cut(self, text: str) -> bool:
        """Return whether `text` has more tokens than CLIP reads. Its last tokens are then cut, before the end token."""
        return len(self._ids(text)) > self._tokens

    def _ids(self, text: str) -> list[int]:
        return [self._start, *self._tokenize(text), self._end]


def _read_tokenizer(folder: Path, size: int) -> Vocabulary:
    how = f"run 'hf download {HUB_CLIP} vocab.json merges.txt tokenizer_config.json' once, and give their folder"
    try:
        vocabulary = read_vocabulary(folder)
    except ValueError as error:
        raise CheckpointError(f"{folder} holds no tokenizer beside its weights ({error}): {how}") from None
    if len(vocabulary.ids) != size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {len(vocabulary.ids)} tokens, CLIP's text half {size}: {how}"
        )
    return vocabulary


def preprocess(picture: np.ndarray, size: int = 224) -> Tensor:
    """Preprocess a picture uint8 (H, W, 3) to float32 (3, size, size), with the same bits as transformers.

    Bicubic to `size` on the short side, centre crop, CLIP's mean and standard deviation.
    """
    height, width = picture.shape[:2]
    short = min(height, width)
    height, width = int(size * height / short), int(size * width / short)
    image = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    top, left = (height - size) // 2, (width - size) // 2
    pixels = torch.from_numpy(np.array(image)[top : top + size, left : left + size])
    unit = (pixels.double() * (1 / 255)).float()  # in double precision, because transformers rounds at this point
    return ((unit - torch.tensor(_MEAN)) / torch.tensor(_STD)).permute(2, 0, 1).contiguous()


def find_clip(clip: str | Path) -> Path:
    """Return the folder of a model: itself, or that of a hub model in the local cache. Nothing is downloaded.

    Raises:
            ValueError: there is neither; the message says how to get a model.
    """
    if Path(clip).is_dir():
        return Path(clip)
    try:
        config = try_to_load_from_cache(str(clip), "config.json")
    except HFValidationError:  # a path without a folder
        config = None
    if isinstance(config, str):
        return Path(config).parent
    raise ValueError(
        f"{clip} is neither a folder nor a model in the hub's cache: give a folder with config.json and "
        f"model.safetensors, or run 'hf download {HUB_CLIP} config.json model.safetensors' once while online"
    )


def load_vision(folder: Path, device: str | torch.device = "cpu") -> Vision:
    """Load the image half of a CLIP in transformers' format. Every key of the file must be known.

    Raises:
        CheckpointError: a file is missing or damaged, or they do not match.
    """
    path = _weights_file(folder)
    weights, beside = _read_weights(path, "vision")
    config = cast(CLIPVisionConfig, _read_config(folder / "config.json", "vision"))
    if (projection := weights.get("visual_projection.weight")) is not None:
        config.projection_dim = len(projection)  # configs of both halves have it outside the image half, or nowhere
    with torch.device("meta"):
        clip = CLIPVisionModelWithProjection(config)
    _fill(cast(nn.Module, clip), weights, path)
    # a plain range, which is not in the file and so has no values on the meta device
    embeddings = clip.vision_model.embeddings
    embeddings.register_buffer("position_ids", torch.arange(embeddings.num_positions)[None], persistent=False)
    return Vision(
        model=cast(nn.Module, clip).to(device).eval().requires_grad_(False),
        name=f"ViT-{_SIZES.get(config.hidden_size, config.hidden_size)}/{config.patch_size}",
        size=cast(int, config.image_size),
        width=config.projection_dim,
        beside=beside,
        sha256=sha256(path),
        device=torch.device(device),
    )


def _weights_file(folder: Path) -> Path:
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} holds no weights: expected {' or '.join(_FILES)}")
    return path


def _read_weights(path: Path, half: Half) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of one half under transformers' present names, and those of neither half, in float32."""
    file = open_weights(path)
    read = file.reader()
    weights, beside = {}, {}
    for key in file.tensors:
        name = key.replace(f"{half}_model.{half}_model.", f"{half}_model.", 1)  # as older releases nest it
        if name.startswith(_HALVES[half]):
            if name != f"{half}_model.embeddings.position_ids":  # older releases store it; it is computed here
                weights[name] = read(key).float()
        elif not name.startswith(_BOTH):
            beside[name] = read(key).float()
    return weights, beside


def _fill(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Fill a model on the meta device with weights."""
    shapes, expected = ({key: tuple(x.shape) for key, x in state.items()} for state in (weights, model.state_dict()))
    if problems := [
        f"{key}: {shapes.get(key, 'nothing')} in the file, {expected.get(key, 'nothing')} in the model"
        for key in sorted(shapes.keys() | expected.keys())
        if shapes.get(key) != expected.get(key)
    ]:
        raise CheckpointError(f"{path} does not match its config.json:\n  " + "\n  ".join(problems))
    model.load_state_dict(weights, strict=True, assign=True)


def _read_config(path: Path, half: Half) -> CLIPVisionConfig | CLIPTextConfig:
    try:
        values = read(Mapping[str, Any], read_json(path, infinities=True), str(path))
        if f"{half}_config" in values or f"{half}_config_dict" in values:
            return getattr(CLIPConfig(**values), f"{half}_config")
        return {"vision": CLIPVisionConfig, "text": CLIPTextConfig}[half](**values)
    except Exception as error:  # transformers checks values in its own ways
        raise CheckpointError(f"{path} cannot be read as the config of a CLIP ({one_line(str(error))})") from None
