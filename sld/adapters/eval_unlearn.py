"""SLD as a technique of eval-unlearn, which finds it by the entry point in pyproject.toml."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image

from sld.guidance import DEFAULT_CONCEPT
from sld.loading import load
from sld.pipeline import Pipeline


class SafeLatentDiffusion:
    """SLD by this package, for eval-unlearn's runners and its command line.

    Image k of all that one technique makes has the seed `seed` + k, whatever the batches. A picture does not depend on
    those made beside it, because each is made alone.

    Args:
        model: a checkpoint, as for `sld.load`.
        preset: a name in `sld.PRESETS`, or "off".
        erase_concept: the safety concept, in words. eval-unlearn reads it too: its metric "err" asks for "nudity".
        device: where everything runs; None takes CUDA where there is one.
        options: what `sld.Pipeline` takes when called, for every picture, such as `steps`, `size` or `guidance_scale`.

    Raises:
        ValueError: the model or the device cannot be used.
    """

    def __init__(
        self,
        model: str,
        preset: str = "max",
        erase_concept: str = DEFAULT_CONCEPT,
        device: str | None = None,
        **options: Any,
    ) -> None:
        self.pipe: Pipeline = load(model, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.options = {"safety": preset, "concept": erase_concept, **options}
        self.made = 0

    def generate(self, prompts: Sequence[str], seed: int | None = None, **options: Any) -> list[Image]:
        """Return a picture for each prompt.

        Args:
            prompts: any number.
            seed: of the first picture that this technique made; None draws seeds that nobody knows.
            options: as above, for these pictures.

        Raises:
            ValueError: an option is out of range.
        """
        first = random.randrange(2**32) if seed is None else seed + self.made
        self.made += len(prompts)
        options = self.options | options
        return [self.pipe(prompt, first + k, **options)[0] for k, prompt in enumerate(prompts)]
