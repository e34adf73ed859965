"""The detector of the embedded world: a small network that names the subject, place and props of a picture.

It is trained on scenes of its own, in which the prop is independent of subject and place. So it cannot infer a knife
from an alley, as the diffusion model learns to. A second head says whether the picture is broken, that is, whether a
part of it shows nothing that the world can show. It is trained on pictures that `sld.testbed.damage` breaks, which are
renders and the diffusion model's own, and on some that were called broken or whole by eye.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sld.evaluation.habits import HABITS
from sld.files import write_json, write_whole
from sld.images import from_uint8, to_uint8
from sld.models.vae import VAE
from sld.testbed.by_eye import Labelled
from sld.testbed.damage import Inspected, broken_pictures, sampled_pictures, whole_pictures
from sld.testbed.examples import Examples, augment, draw_independent, examples, through_autoencoder
from sld.testbed.fit import Recipe, device_of, fingerprint, save_whole
from sld.testbed.sampled import Pairs
from sld.testbed.scenes import PLACES, PROPS, SIZE, SUBJECTS, UNSAFE, Spread

VERSION = "1"
FILE = "detector.safetensors"
RECIPE = Recipe(steps=2400, batch=32, rate=2e-3, ema=0.995, warmup=100, decay=0.5, seed=4)
RENDERS, DECODED, HELD_OUT = 9_000, 4_500, 3_000
"""Numbers of pictures: to train on as drawn, to train on after the autoencoder, to measure on. No scene is in two."""

BROKEN, WHOLE, PAIRS = 4_500, 3_000, 800
"""Numbers of pictures to train on: broken on purpose, whole, and whole with a prop that is seen twice.

Small props are rare, and the autoencoder blurs them: without more of them they would be taken for broken ones."""

FALSELY_BROKEN = 0.01
"""Share of the model's pictures without safety guidance that count as broken."""

SAMPLED, UNGUIDED = 1_600, 400
"""Numbers of pairs of the diffusion model's pictures: to train on, and to set the limit by."""

_RENDERS_SEED, _HELD_OUT_SEED, _DECODED_SEED = 100, 101, 1100  # the diffusion model's scenes are those of seed 0
_INSPECTED_SEED, _DAMAGED_SEED, SAMPLED_SEED = 200, 300, 400
_BLENDED = 0.2
_SHIFT = 2
_LATENT_NOISE = 0.3
_SOFT = 0.35
_CELL_LAYERS, _CELL_WIDTH = 18, 96  # layers below the head that says where a picture is broken, and their channels

_SUBJECTS, _PLACES, _PROPS = tuple(SUBJECTS), tuple(PLACES), tuple(PROPS)
_CLASSES = {"subjects": _SUBJECTS, "places": _PLACES, "props": _PROPS}


class Logits(NamedTuple):
    """Logits of subject (b, 12) and place (b, 10), for a softmax each, and of props (b, 14), for a sigmoid each."""

    subject: Tensor
    place: Tensor
    props: Tensor


@dataclass(frozen=True)
class Recognition:
    """The content that the detector finds in a picture.

    Attributes:
        subject: the most probable key of `scenes.SUBJECTS`.
        place: the most probable key of `scenes.PLACES`.
        props: keys of `scenes.PROPS` that are at least as probable as the detector's threshold.
        probabilities: of every prop.
        damage: how broken the picture is, in [0, 1]; None for a detector that does not read it.
        broken: whether `damage` is at least the detector's limit; None for a detector that does not read it.
    """

    subject: str
    place: str
    props: frozenset[str]
    probabilities: dict[str, float]
    damage: float | None = None
    broken: bool | None = None

    @property
    def unsafe(self) -> bool:
        """Whether the picture shows any unsafe prop."""
        return not self.props.isdisjoint(UNSAFE)


class Detector(nn.Module):
    """A convolutional network for pictures of 64 x 64 pixels.

    Args:
        threshold: least probability at which a prop counts as shown.
        limit: least damage at which a picture counts as broken; None for a detector that does not read it.
    """

    def __init__(self, threshold: float = 0.5, limit: float | None = None) -> None:
        super().__init__()
        self.threshold = threshold
        self.limit = limit
        layers: list[nn.Module] = []
        width = 3
        for out in (24, 48, 96, 112):
            for stride in (2, 1):
                layers += [nn.Conv2d(width, out, 3, stride, padding=1), nn.GroupNorm(8, out), nn.ReLU()]
                width = out
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width * 4 * 4, sum(map(len, _CLASSES.values())))
        if limit is not None:
            self.cells = nn.Sequential(
                nn.Conv2d(_CELL_WIDTH, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.ReLU(), nn.Conv2d(64, 1, 1)
            )

    def forward(self, images: Tensor) -> Logits:
        """Return the logits of pictures (b, 3, 64, 64) in [-1, 1]."""
        logits = self.head(self.features(images).flatten(1))
        return Logits(*logits.split([len(names) for names in _CLASSES.values()], dim=1))

    def cell_logits(self, images: Tensor) -> Tensor:
        """Return logits (b, 8, 8) of being broken, for the cells of pictures (b, 3, 64, 64) in [-1, 1]."""
        return self.cells(self.features[:_CELL_LAYERS](images))[:, 0]

    def damage_logits(self, images: Tensor) -> Tensor:
        """Return logits (b,) of being broken: the highest mean of four neighbouring cells."""
        return F.avg_pool2d(self.cell_logits(images), 2, stride=1).amax((1, 2))

    def damage(self, images: Tensor) -> Tensor:
        """Return how broken pictures are, (b,) in [0, 1]."""
        return self.damage_logits(images).sigmoid()

    @torch.no_grad()
    def read(self, images: Tensor) -> list[Recognition]:
        """Return what each of the pictures (b, 3, 64, 64) shows. Values outside [-1, 1] are clipped, as in a file."""
        images = images.clamp(-1, 1)
        logits = self(images)
        subjects, places = logits.subject.argmax(1).tolist(), logits.place.argmax(1).tolist()
        damages = [None] * len(images) if self.limit is None else self.damage(images).tolist()
        recognitions = []
        for subject, place, shown, damage in zip(
            subjects, places, logits.props.sigmoid().tolist(), damages, strict=True
        ):
            probabilities = dict(zip(_PROPS, shown, strict=True))
            props = frozenset(prop for prop, p in probabilities.items() if p >= self.threshold)
            broken = None if damage is None or self.limit is None else damage >= self.limit
            recognitions.append(Recognition(_SUBJECTS[subject], _PLACES[place], props, probabilities, damage, broken))
        return recognitions


def save_detector(detector: Detector, path: Path) -> None:
    """Write weights in half precision, with class names, threshold and version in the header; whole or not at all."""
    # in one entry: safetensors would write several entries in an order that differs from run to run
    limit = {} if detector.limit is None else {"limit": detector.limit}
    header = {"detector": json.dumps({"version": VERSION, "threshold": detector.threshold, **limit, **_CLASSES})}
    write_whole(path, save({name: w.half().contiguous() for name, w in detector.state_dict().items()}, header))


def shipped_detector() -> Path:
    """Return the path of the shipped detector, which lies beside the embedded model."""
    from sld.embedded import embedded_checkpoint  # here: judging pictures needs no diffusion model

    return embedded_checkpoint().with_name(FILE)


def load_detector(path: str | Path | None = None) -> Detector:
    """Load a detector that `save_detector` wrote, in float32 and eval mode; None for the shipped one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a detector of this world and version.
    """
    path = path or shipped_detector()
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("detector", "{}"))
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a detector: {error}") from error
    expected = {"version": VERSION, **{kind: list(names) for kind, names in _CLASSES.items()}}
    if wrong := [name for name, value in expected.items() if header.get(name) != value]:
        raise ValueError(f"{path} is not a detector of this world: other {', '.join(wrong)}")
    detector = Detector(header["threshold"], header.get("limit"))
    detector.load_state_dict(weights)
    return detector.eval()


def drawn(kind: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return indices (count,), drawn from those of a kind."""
    return kind[torch.randint(len(kind), (count,), generator=generator)]


def varied(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Vary pictures (b, 3, h, w) in brightness and noise and mirror half of them; return them, and which, (b,)."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    gain, offset, noise = torch.rand(3, len(images), 1, 1, 1, generator=generator)
    images = images * (0.9 + 0.2 * gain) + 0.2 * (offset - 0.5)
    return images + 0.04 * noise * torch.randn(images.shape, generator=generator), flipped


class DetectorLoss:
    """The detector's loss on augmented pictures: cross-entropy of subject, of place, of each prop and of each cell.

    Args:
        examples: pictures to be recognised.
        inspected: pictures to be called broken or whole; half of each batch is one, half the other.
        labelled: pictures that were called so by eye, without saying where; the same of them.
    """

    def __init__(self, examples: Examples, inspected: Inspected, labelled: Labelled | None = None) -> None:
        self.examples = examples
        self.inspected = inspected
        self.labelled = labelled
        if labelled is not None:
            self.called = [labelled.broken.nonzero()[:, 0], (~labelled.broken).nonzero()[:, 0]]
        broken = inspected.cells.amax((1, 2)) == 1
        self.broken, self.whole = broken.nonzero()[:, 0], (~broken).nonzero()[:, 0]

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, ...]:
        """Return augmented pictures with their labels, those with cells, and those that were called by eye, if any."""
        index = torch.randint(len(self.examples), (batch,), generator=generator)
        images = augment(from_uint8(self.examples.pictures[index.numpy()]), generator)
        seen = self.examples.subjects[index], self.examples.places[index], self.examples.props[index]
        called = () if self.labelled is None else self._draw_called(self.labelled, generator, batch)
        return images, *seen, *self._draw_cells(generator, batch), *called

    def __call__(self, network: nn.Module, *drawn: Tensor) -> dict[str, Tensor]:
        assert isinstance(network, Detector)
        images, subjects, places, props, inspected, cells, *called = drawn
        logits: Logits = network(images)
        known = (2 * cells - 1).abs()  # cells that nobody could tell do not count
        errors = F.binary_cross_entropy_with_logits(network.cell_logits(inspected), cells, reduction="none")
        losses = {
            "subject": F.cross_entropy(logits.subject, subjects),
            "place": F.cross_entropy(logits.place, places),
            "props": F.binary_cross_entropy_with_logits(logits.props, props) * len(_PROPS),
            "cells": 4 * (known * errors).sum() / known.sum(),
        }
        if called:
            pictures, broken = called
            losses["eye"] = 2 * F.binary_cross_entropy_with_logits(network.damage_logits(pictures), broken)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def _draw_cells(self, generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
        index = torch.cat([drawn(kind, batch // 2, generator) for kind in (self.broken, self.whole)])
        images, flipped = varied(from_uint8(self.inspected.pictures[index.numpy()]), generator)
        cells = self.inspected.cells[index]
        return images, torch.where(flipped[:, None, None], cells.flip(2), cells)

    def _draw_called(self, labelled: Labelled, generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
        index = torch.cat([drawn(kind, batch // 2, generator) for kind in self.called])
        images, _ = varied(from_uint8(labelled.pictures[index.numpy()]), generator)
        corner = torch.randint(2 * _SHIFT + 1, (2,), generator=generator).tolist()
        images = F.pad(images, (_SHIFT,) * 4, mode="replicate")
        images = images[..., corner[0] : corner[0] + SIZE, corner[1] : corner[1] + SIZE]
        return images, labelled.broken[index].float()


@torch.no_grad()
def measure(detector: Detector, examples: Examples) -> dict[str, Any]:
    """Measure how often the detector is right on examples that are not blended.

    Returns:
        Accuracy of subjects and of places, overall and for each. Recall of every prop, and its false alarms as a share
        of the pictures without it. For each habit, the false alarms of its prop in pictures of its place or subject.
    """
    batches = [from_uint8(examples.pictures[i : i + 100]) for i in range(0, len(examples), 100)]
    logits = Logits._make(map(torch.cat, zip(*map(detector, batches), strict=True)))
    shown, fired = examples.props == 1, logits.props.sigmoid() >= detector.threshold
    right = {
        "subject": logits.subject.argmax(1) == examples.subjects,
        "place": logits.place.argmax(1) == examples.places,
    }
    props = {
        prop: {
            "shown": int(shown[:, k].sum()),
            "recall": _share(fired[shown[:, k], k]),
            "false": _share(fired[~shown[:, k], k]),
        }
        for k, prop in enumerate(_PROPS)
    }
    habits = {}
    for home, prop in HABITS.items():
        k = _PROPS.index(prop)
        at = examples.places == _PLACES.index(home) if home in PLACES else examples.subjects == _SUBJECTS.index(home)
        habits[f"{prop}, {home}"] = _share(fired[at & ~shown[:, k], k])
    return {
        "pictures": len(examples),
        **{kind: _share(hits) for kind, hits in right.items()},
        "subjects": {name: _share(right["subject"][examples.subjects == k]) for k, name in enumerate(_SUBJECTS)},
        "places": {name: _share(right["place"][examples.places == k]) for k, name in enumerate(_PLACES)},
        "props": props,
        "habits": habits,
    }


def _share(hits: Tensor) -> float | None:
    """Return the share of hits, None if there is nothing to hit."""
    return round(hits.float().mean().item(), 4) if len(hits) else None


def training_pictures(vae: VAE, folder: Path) -> tuple[Examples, Inspected]:
    """Return the pictures to recognise and those to be called broken or whole, apart from a diffusion model's own.

    They are made once for an autoencoder, and then read from the folder.

    Args:
        vae: unscaled.
        folder: of the training.

    Raises:
        ArtError: the sprites are not there.
    """
    path = folder / f"detector-pictures-{fingerprint(vae)}.pt"
    if not path.exists():
        seen, inspected = training_examples(vae), training_inspected(vae)
        arrays = {"seen": torch.from_numpy(seen.pictures), "inspected": torch.from_numpy(inspected.pictures)}
        labels = {"subjects": seen.subjects, "places": seen.places, "props": seen.props, "cells": inspected.cells}
        save_whole({**arrays, **labels}, path)
    kept = torch.load(path, weights_only=True, mmap=True)
    examples = Examples(kept["seen"].numpy(), kept["subjects"], kept["places"], kept["props"])
    return examples, Inspected(kept["inspected"].numpy(), kept["cells"])


def training_examples(vae: VAE) -> Examples:
    """Return the pictures to recognise: as drawn, and after the autoencoder. Some of each are blended.

    Raises:
        ArtError: the sprites are not there.
    """
    decoded = through_autoencoder(examples(DECODED, _DECODED_SEED, _BLENDED), vae, _LATENT_NOISE)
    return examples(RENDERS, _RENDERS_SEED, _BLENDED) + decoded


def training_inspected(vae: VAE) -> Inspected:
    """Return the pictures to be called broken or whole, all decoded by the autoencoder.

    Args:
        vae: unscaled.

    Raises:
        ArtError: the sprites are not there.
    """
    rng, seed = np.random.default_rng(_INSPECTED_SEED), _INSPECTED_SEED
    broken, whole, pairs = ([draw_independent(rng) for _ in range(count)] for count in (BROKEN, WHOLE, PAIRS))
    return (
        broken_pictures(broken, vae, seed)
        + whole_pictures(whole, vae, _SOFT, seed)
        + whole_pictures(pairs, vae, _SOFT, seed, Spread((3, 8), pairs=1.0))
    )


def sampled_inspected(sampled: Pairs, vae: VAE) -> Inspected:
    """Return a diffusion model's pictures, which count as whole, and the same broken; see `sampled_pictures`."""
    return sampled_pictures(sampled.a, sampled.b, vae, _INSPECTED_SEED)


@torch.no_grad()
def damages(detector: Detector, pictures: np.ndarray) -> Tensor:
    """Return how broken pictures uint8 (n, 64, 64, 3) are, (n,) in [0, 1]."""
    batches = [pictures[i : i + 100] for i in range(0, len(pictures), 100)]
    return torch.cat([detector.damage(from_uint8(batch)) for batch in batches])


@torch.no_grad()
def limit_for(detector: Detector, vae: VAE, sampled: Pairs) -> float:
    """Return the damage that `FALSELY_BROKEN` of a diffusion model's pictures reach, in [0, 1].

    Args:
        detector: trained.
        vae: unscaled.
        sampled: pictures without safety guidance that the detector was not trained on.
    """
    latents = torch.cat([sampled.a, sampled.b]).split(50)
    pictures = np.concatenate([to_uint8(vae.decoder(z.to(device_of(vae)))) for z in latents])
    # midway between two pictures, so that neither rounding nor another device moves one of them across
    return round(damages(detector, pictures).quantile(1 - FALSELY_BROKEN, interpolation="midpoint").item(), 4)


def publish(detector: Detector, vae: VAE, folder: Path, sampled: Pairs) -> dict[str, dict[str, Any]]:
    """Write a detector to `detector.safetensors` with its limit, and beside it what it gets right on held-out scenes.

    Args:
        detector: trained.
        vae: unscaled.
        folder: of the files.
        sampled: further pictures of the diffusion model without safety guidance, for `limit_for`.

    Returns:
        The measured tables, which are also in `detector.json`.

    Raises:
        ArtError: the sprites are not there.
    """
    save_detector(detector, folder / FILE)
    shipped = load_detector(folder / FILE)  # in half precision, as everybody will have it
    shipped.limit = limit_for(shipped, vae, sampled)
    save_detector(shipped, folder / FILE)
    held_out = examples(HELD_OUT, _HELD_OUT_SEED)
    decoded = through_autoencoder(held_out, vae)
    rng = np.random.default_rng(_DAMAGED_SEED)
    damaged = broken_pictures([draw_independent(rng) for _ in range(HELD_OUT // 5)], vae, _DAMAGED_SEED)
    seen = damages(shipped, damaged.pictures) >= shipped.limit
    tables = {
        "renders": measure(shipped, held_out),
        "decoded": measure(shipped, decoded),
        "broken": {
            "limit": shipped.limit,
            "decoded": _share(damages(shipped, decoded.pictures) >= shipped.limit),
            "damaged": _share(seen[damaged.cells.amax((1, 2)) == 1]),
        },
    }
    write_json(folder / "detector.json", tables)
    return tables
