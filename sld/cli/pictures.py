"""Making of requested pictures in a folder where nothing is replaced, and of sheets that compare them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from sld import images
from sld.batching import run
from sld.cli.naming import there, write_new
from sld.finite import finite, likely_cause
from sld.pipeline import Pipeline
from sld.request import Request, about


@dataclass(frozen=True)
class Maker:
    """A model that fills a folder.

    Attributes:
        pipe: the model.
        folder: of the pictures.
        batch_size: pictures at once.
    """

    pipe: Pipeline
    folder: Path
    batch_size: int

    def pictures(self, names: Mapping[Request, str]) -> dict[Request, Path | None]:
        """Make the pictures that are not there yet, and print the paths of all. Each batch is written when it is done.

        A batch that lacks a picture is made as a whole: what is drawn beside a picture moves its last bits.

        Args:
            names: of the pictures by request, without ending.

        Returns:
            The path of each picture; None where it is not finite.
        """
        batches = self._batches(list(names))
        abouts = {r: sidecar for batch in batches for r, sidecar in zip(batch, self._abouts(batch), strict=True)}
        paths = {r: there(self.folder, name, abouts[r]) for r, name in names.items()}
        kept = sum(path is not None for path in paths.values())
        open_batches = [any(paths[r] is None for r in batch) for batch in batches]
        with self._bar(compress(batches, open_batches)) as bar:
            for batch, is_open in zip(batches, open_batches, strict=True):
                if is_open:
                    made = run(self.pipe, batch, bar.update)
                    for r, image, good in zip(batch, images.to_pil(made), finite(made), strict=True):
                        paths[r] = write_new(image, self.folder, names[r], abouts[r]) if good else None
                for path in filter(None, map(paths.get, batch)):
                    print(path, flush=True)
        if kept:
            print(
                f"sld: {kept} of {len(names)} pictures are there from the same request, and not made again: to make "
                "them anew, remove them or name another folder",
                file=sys.stderr,
            )
        return paths

    def sheet(self, name: str, heading: str, guided: Mapping[Request, Path]) -> list[Request]:
        """Make a contact sheet of pictures without safety guidance beside those that are written, and print its path.

        Args:
            name: of the sheet, without ending.
            heading: over the pictures that are written.
            guided: their paths by request; they have one prompt.

        Returns:
            The requests of pictures without guidance that are not finite. There is no sheet then.
        """
        requests = list(guided)
        plain = [request.without_safety() for request in requests]
        sidecar = {
            **{key: value for key, value in self._abouts(requests)[0].items() if key != "request"},
            "sheet": ["off", heading],
            "requests": [request.to_dict() for request in requests],
        }
        path = there(self.folder, name, sidecar)
        if path is None:
            batches = self._batches(plain)
            with self._bar(batches) as bar:
                made = torch.cat([run(self.pipe, batch, bar.update) for batch in batches])
            if broken := [request for request, good in zip(plain, finite(made), strict=True) if not good]:
                return broken
            rows = [[before, Image.open(guided[r])] for r, before in zip(requests, images.to_pil(made), strict=True)]
            sheet = images.contact_sheet(rows, ["off", heading], [f"seed {request.seed}" for request in requests])
            path = write_new(sheet, self.folder, name, sidecar)
        print(path, flush=True)
        return []

    def not_finite(self, broken: Sequence[Request]) -> str:
        """Return the message about pictures that are not finite."""
        which = ", ".join(f"seed {r.seed} of {r.prompt!r}" for r in broken[:4]) + ", …" * (len(broken) > 4)
        scale = max((r.guidance.guidance_scale for r in broken if r.rule is None), default=None)
        cause = likely_cause(self.pipe.networks, scale)
        number = "a picture is" if len(broken) == 1 else f"{len(broken)} pictures are"
        return f"{number} not finite, and not written ({which}): {cause}"

    def _batches(self, requests: Sequence[Request]) -> list[Sequence[Request]]:
        return [requests[k : k + self.batch_size] for k in range(0, len(requests), self.batch_size)]

    def _abouts(self, batch: Sequence[Request]) -> list[dict[str, Any]]:
        """Return the sidecars of pictures that are made together."""
        beside = {"batch": len(batch)} if len(batch) > 1 and self.pipe.numerics != "invariant" else {}
        return [{**about(request, self.pipe), **beside} for request in batch]

    def _bar(self, batches: Iterable[Sequence[Request]]) -> tqdm:
        steps = sum(len(r.make_sampler(self.pipe.schedule).timesteps) for batch in batches for r in batch)
        return tqdm(total=steps, unit="step", disable=not sys.stderr.isatty(), leave=False)
