"""From options to a loaded model and to the request that all pictures share.

Functions here import torch themselves, so that wrong options are refused before it is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sld.checkpoints.changes.opening import open_changes
from sld.checkpoints.hub import located
from sld.choices import HYPERPARAMETERS
from sld.cli.options import ChangeOptions, GuidanceOptions, ModelOptions, SamplingOptions, StartOptions
from sld.config import Defaults, ModelConfig
from sld.embedded import embedded_checkpoint
from sld.text.vocabulary import find_vocabulary

if TYPE_CHECKING:
    import torch

    from sld.guidance import SLDConfig
    from sld.pipeline import Pipeline
    from sld.request import Request
    from sld.starting import StartFiles


def load_model(options: ModelOptions, device: str | None = None) -> Pipeline:
    """Return the model that the options describe.

    Args:
        options: of the command.
        device: used if the options name none. Without either it is CUDA if there is one, else the CPU.

    Raises:
        ValueError: the checkpoint is missing or does not match a model, a file of a change does not fit it, the
            tokenizer is not whole, or the device cannot be used.
    """
    checkpoint = embedded_checkpoint() if options.checkpoint is None else located(options.checkpoint)
    vocabulary = find_vocabulary(checkpoint, options.tokenizer)
    changes = options.changes.stated
    opened = open_changes(changes)
    if vocabulary is not None:
        opened.words(vocabulary)
    import torch

    import sld

    pipe = sld.load(
        checkpoint,
        options.read_as.config,
        dtype=torch_dtype(options.dtype),
        device=options.device or device or ("cuda" if torch.cuda.is_available() else "cpu"),
        tokenizer=vocabulary,
        tokenization=options.tokenization,
        use_ema=options.read_as.use_ema,
        ignore=options.read_as.ignore,
        changes=changes,
        numerics=options.numerics,
        offload=options.cost.offload,
    )
    pipe = replace(pipe, rows_at_once=options.cost.rows_at_once, tile=options.cost.tile)
    pipe = pipe.winograd() if options.cost.winograd else pipe
    return pipe.compile(mode=options.cost.compile) if options.cost.compile else pipe


def changed_models(
    options: ModelOptions, pipe: Pipeline, changes: Mapping[str, ChangeOptions], device: str | None = None
) -> dict[str, Pipeline]:
    """Return changed models by name. Equal ones are one, and networks that nothing changes are those of `pipe`.

    Args:
        options: of the command.
        pipe: the model that they describe.
        changes: by name, in place of those of the options.
        device: see `load_model`.

    Raises:
        ValueError: a file of a change does not fit the model.
    """
    models: dict[ChangeOptions, Pipeline] = {}
    for stated in changes.values():
        if stated not in models:
            changed = replace(load_model(replace(options, changes=stated), device), vae=pipe.vae)
            untouched = all(change.lora == () == change.embedding for change in (stated, options.changes))
            if untouched and stated.text_encoder == options.changes.text_encoder:
                changed = replace(changed, texts=pipe.texts)
            models[stated] = changed
    return {name: models[stated] for name, stated in changes.items()}


@contextmanager
def of_file(path: Path | None) -> Iterator[None]:
    """Name the file of the options that are worked with, if there is one, in what is refused.

    Raises:
        ValueError: one of the block, with the path before its message.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}" if path else str(error)) from error


def torch_dtype(name: str | None) -> torch.dtype | None:
    """Return torch's dtype of a name; None of None."""
    import torch

    return None if name is None else getattr(torch, name)


def sld_config(options: GuidanceOptions, usual: Defaults) -> SLDConfig:
    """Return the configuration of the preset, changed by the fields that the options give."""
    from sld.guidance import preset

    given = {name: value for name, value in asdict(options).items() if name in HYPERPARAMETERS and value is not None}
    return replace(preset(options.preset), **{"guidance_scale": usual.guidance_scale, **given})


def read_start(options: StartOptions) -> StartFiles | None:
    """Return the files that pictures start from, after a look at them; None if there are none.

    Raises:
        ValueError: a file is lost or cannot be taken; see `sld.starting`.
    """
    from sld.starting import PictureFile, StartFiles, read_pair, usual_strength

    image, mask, strength = options.image, options.mask, options.strength
    if image is None:
        return None
    read_pair(image, mask)
    strength = usual_strength(mask is not None) if strength is None else strength
    return StartFiles(PictureFile.of(image), strength, None if mask is None else PictureFile.of(mask))


def sized(sampling: SamplingOptions, start: StartFiles | None, config: ModelConfig) -> SamplingOptions:
    """Return options with the size of the picture to start from, if there is one and the user gives no size.

    Raises:
        ValueError: the picture has far more or far fewer pixels than the model makes, or the mask acts nowhere.
    """
    from sld.starting import fitted, own_size, read_pair

    if start is None:
        return sampling
    factor = config.vae.factor
    pair = read_pair(Path(start.image.path), None if start.mask is None else Path(start.mask.path))
    size = sampling.size or own_size(pair[0], config.defaults.sides, factor)
    fitted(*pair, size, factor)
    pair[0].warn_of_changes(size)
    return replace(sampling, size=size)


def template(sampling: SamplingOptions, usual: Defaults, concept: str | None = None, **others: Any) -> Request:
    """Return the request that all pictures of a command share.

    Args:
        sampling: the options.
        usual: defaults for those that are not given.
        concept: the safety concept; None for the usual one.
        others: fields of `Request`.
    """
    from sld.request import Request

    height, width = sampling.size or usual.sides
    spacing = usual.spacing if sampling.sampler in (None, usual.sampler) else None  # another sampler has its own
    return Request(
        **{"prompt": "", **others},
        concept=usual.concept if concept is None else concept,
        height=height,
        width=width,
        sampler=sampling.sampler or usual.sampler,
        spacing=sampling.spacing or spacing,
        steps=usual.steps if sampling.steps is None else sampling.steps,
        eta=sampling.eta,
        space=sampling.space,
        deep_every=sampling.deep_every,
    )
