"""The pictures of a run, rows x configurations x images, and the settings that decide each of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sld.evaluation.choices import require_configuration_name
from sld.evaluation.prompts import Row
from sld.guidance import OFF, PRESETS, SLDConfig, at_scale, from_data, preset
from sld.guidance.sld import SHOWING
from sld.request import Request
from sld.spelling import did_you_mean

CALL = 5
"""Number of images in a call of the authors' evaluation. A prompt's ten images are two calls with one generator."""


@dataclass(frozen=True)
class Protocol:
    """A protocol: how rows become pictures.

    Attributes:
        images: number per row and configuration.
        seeds: source of the noise of image k of a row. "generator": one generator with the row's seed draws for all
            images in turn, `CALL` in a call, as in the authors' evaluation. "consecutive": a generator with the row's
            seed + k. See `seeds_of` for what stochastic samplers draw.
        row_guidance: take guidance_scale from rows that have one, not from the configuration.
        row_size: take height and width from rows that have them, not from the configuration.
        base_seed: a row without a seed gets base_seed + its id.
        chunk: approximate number of pictures that are written at once. A killed run loses no more.

    Raises:
        ValueError: a value is out of range.
    """

    images: int = 10
    seeds: Literal["generator", "consecutive"] = "generator"
    row_guidance: bool = False
    row_size: bool = False
    base_seed: int = 0
    chunk: int = 64

    def __post_init__(self) -> None:
        for name in ("images", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.seeds not in ("generator", "consecutive"):
            raise ValueError(f"seeds must be generator or consecutive; got {self.seeds!r}")
        if not 0 <= self.base_seed < 2**63:
            raise ValueError(f"base_seed must be in [0, 2**63); got {self.base_seed}")


PROTOCOLS = {
    "authors": Protocol(),
    "authors-rerun": Protocol(),
    "mini": Protocol(images=2),
    "row": Protocol(seeds="consecutive", row_guidance=True, row_size=True),
}
"""Protocols by name: the authors' evaluation; that of their re-run, whose safety concept begins with other words
(`usual_concept`); the first with fewer images, for the embedded sets; and that of I2P's rows, with the settings with
which each prompt was found."""


def usual_concept(protocol: str | None, concept: str) -> str:
    """Return the safety concept of a named protocol, for a checkpoint whose own one is `concept`."""
    return SHOWING + concept if protocol == "authors-rerun" else concept


class Item(NamedTuple):
    """One picture of a run."""

    configuration: str
    row: int
    image: int


class Task(NamedTuple):
    """A picture to make: its request, and the noise (c, h, w) that replaces that of the request's seed."""

    item: Item
    request: Request
    noise: Tensor


def configuration(template: Request, name: str, settings: Mapping[str, Any]) -> Request:
    """Return a configuration: the request of every picture, without prompt and seed.

    Args:
        template: fields that settings do not give; its prompt and seed are not used.
        name: of the configuration, and of the folder of its pictures.
        settings: "preset": "off", one of PRESETS, or "negative", where the concept is the negative prompt instead; and
            any field of `SLDConfig` or `Request` to override. "rule" is a table as `guidance.from_data` reads it, with
            "guidance_scale" where it gives none. A rule has its own hyper-parameters, so SLD's are refused with it.

    Raises:
        ValueError: the name cannot name a folder, a preset or a field is unknown, or a value is out of range.
    """
    require_configuration_name(name, f"the configuration {name!r}:")
    changes = dict(settings)
    base = changes.pop("preset", "off")
    hyper = {field.name for field in fields(SLDConfig)}
    known = hyper | {field.name for field in fields(Request)} - {"prompt", "seed", "guidance"}
    for field in changes:
        if field not in known:
            hint = did_you_mean(field, known) or f"; there are preset, {', '.join(sorted(known))}"
            raise ValueError(f"the configuration {name!r} has an unknown field {field!r}{hint}")
    if base not in ("off", *PRESETS, "negative"):
        raise ValueError(
            f"no configuration {base!r}: there are off, {', '.join(PRESETS)} and negative, and those that a TOML file "
            f"defines{did_you_mean(str(base), ('off', *PRESETS, 'negative'))}"
        )
    guidance = OFF if base == "negative" else preset(base)
    if "rule" in changes:
        if beside := sorted(hyper & set(changes) - {"guidance_scale"}) + ["preset"] * ("preset" in settings):
            raise ValueError(
                f"the configuration {name!r} has a rule, with which {beside[0]} has no effect: leave {beside[0]} out"
            )
        scale = changes.get("guidance_scale")
        changes["rule"] = from_data(changes["rule"] if scale is None else at_scale(changes["rule"], scale))
    request = replace(
        template,
        guidance=replace(guidance, **{k: v for k, v in changes.items() if k in hyper}),
        **{k: v for k, v in changes.items() if k not in hyper},
    )
    return replace(request, negative=request.concept) if base == "negative" else request


def describe(request: Request) -> dict[str, Any]:
    """Return a configuration for JSON: a request without the fields that belong to a row."""
    return {name: value for name, value in request.to_dict().items() if name not in ("prompt", "seed")}


def seed_of(row: Row, protocol: Protocol) -> int:
    """Return the seed of a row: its own, or else the one of the protocol."""
    return protocol.base_seed + row.id if row.seed is None else row.seed


def seeds_of(row: Row, protocol: Protocol) -> list[int]:
    """Return the seed of each image of a row, from which a stochastic sampler draws its noise.

    Where one generator draws what all images begin with, the first image has the row's seed and the others have further
    ones from a generator with that seed. So no two images of a row are given the same noise on their way.
    """
    seed = seed_of(row, protocol)
    if protocol.seeds == "consecutive":
        return [seed + k for k in range(protocol.images)]
    generator = torch.Generator().manual_seed(seed)
    return [seed, *torch.randint(2**63 - 1, (protocol.images - 1,), generator=generator).tolist()]


def require_seeds(rows: Iterable[Row], protocol: Protocol) -> None:
    """Refuse rows whose images would have a seed beyond 2**64 - 1.

    Raises:
        ValueError: consecutive seeds of a row go beyond 2**64 - 1; the message names the first such row.
    """
    images = protocol.images if protocol.seeds == "consecutive" else 1
    for row in rows:
        if (seed := seed_of(row, protocol)) + images > 2**64:
            raise ValueError(
                f"row {row.id} has seed {seed}: consecutive seeds for {images} images go beyond 2**64 - 1, where seeds "
                "end; make fewer images, leave the row out, or draw them all from its own seed (--seeds generator)"
            )


def tasks(rows: Sequence[Row], configs: Mapping[str, Request], protocol: Protocol, factor: int, c: int) -> list[Task]:
    """Return the pictures of rows as tasks, row by row. A row's image k has the same noise in all configurations.

    Args:
        rows: of a chunk.
        configs: by name.
        protocol: the protocol of the run.
        factor: pixels to a latent.
        c: channels of a latent.
    """
    made = []
    for row in rows:
        for name, config in configs.items():
            request = _request(row, config, protocol)
            noise = noise_of(row, protocol, (c, request.height // factor, request.width // factor))
            made += [
                Task(Item(name, row.id, k), replace(request, seed=seed), z)
                for k, (seed, z) in enumerate(zip(seeds_of(row, protocol), noise, strict=True))
            ]
    return made


def _request(row: Row, config: Request, protocol: Protocol) -> Request:
    request = replace(config, prompt=row.prompt)
    if protocol.row_guidance and row.guidance_scale is not None:
        request = replace(request, guidance=replace(request.guidance, guidance_scale=row.guidance_scale))
    if protocol.row_size and row.height is not None and row.width is not None:
        request = replace(request, height=row.height, width=row.width)
    return request


def noise_of(row: Row, protocol: Protocol, shape: tuple[int, int, int]) -> Tensor:
    """Return the noise (images, c, h, w) of a row's images."""
    if protocol.seeds == "consecutive":
        generators = [torch.Generator().manual_seed(seed) for seed in seeds_of(row, protocol)]
        return torch.cat([torch.randn((1, *shape), generator=g) for g in generators])
    generator = torch.Generator().manual_seed(seed_of(row, protocol))
    calls = [min(CALL, protocol.images - start) for start in range(0, protocol.images, CALL)]
    return torch.cat([torch.randn((n, *shape), generator=generator) for n in calls])


def chunks(rows: Sequence[Row], pictures_per_row: int, target: int) -> list[tuple[Row, ...]]:
    """Return rows in chunks of about `target` pictures, with at least one row in each.

    Chunks depend on the protocol only, not on the number of processes or the batch size.
    """
    size = rows_per_chunk(pictures_per_row, target)
    return [tuple(rows[start : start + size]) for start in range(0, len(rows), size)]


def rows_per_chunk(pictures_per_row: int, target: int) -> int:
    """Return the number of rows in a chunk of about `target` pictures."""
    return max(1, target // pictures_per_row)


def ranges(ids: Sequence[int]) -> str:
    """Return ids as text, such as "0-19,25", in their order."""
    groups = [[k for _, k in group] for _, group in groupby(enumerate(ids), key=lambda pair: pair[1] - pair[0])]
    return ",".join(str(g[0]) if len(g) == 1 else f"{g[0]}-{g[-1]}" for g in groups)
