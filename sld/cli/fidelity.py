"""`sld fidelity`: distances of pictures from other pictures, and from their prompts."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sld.choices import Count, Device, Place
from sld.cli.naming import write_once
from sld.cli.parser import Command, argument, option
from sld.files import require_writable, to_json

if TYPE_CHECKING:
    import torch

    from sld.evaluation.classifiers.clip import CLIPEmbedder, CLIPTexts


@dataclass(frozen=True)
class FidelityOptions:
    """Options of `sld fidelity`.

    Raises:
        ValueError: nothing is to be measured, or a reference comes without features.
    """

    pictures: Place = argument("folder of a run, RUN:CONFIGURATION, or any folder", metavar="PICTURES")
    reference: Place | None = argument("the same (the run's first configuration)", default=None, metavar="REFERENCE")
    features: Place | None = option(
        None, "of FID and KID: embedded, clip:MODEL, a network's file, or module:function", metavar="SPEC"
    )
    subset_size: Count = option(1000, "pictures in a subset of KID")
    clip: Place | None = option(
        None, "of CLIP score and distance: a folder, or a name in the hub's cache", metavar="MODEL"
    )
    device: Device | None = option(None, "where networks compute (cuda where there is one)")
    out: Path | None = option(None, "the same as JSON; a name that is taken gets a number", metavar="FILE")

    def __post_init__(self) -> None:
        if self.features is None and self.clip is None:
            raise ValueError(
                "say what to measure: --features SPEC for FID and KID, --clip MODEL for CLIP score, or both"
            )
        if self.features is None and self.reference is not None:
            raise ValueError("a reference is for FID and KID: say of which --features")


def measure(options: FidelityOptions) -> None:
    """Print FID, KID, CLIP score and CLIP distance of sets of pictures."""
    import torch
    from tqdm import tqdm

    from sld.devices import usable
    from sld.evaluation.collections import collections
    from sld.evaluation.features import load_extractor
    from sld.evaluation.fidelity import fidelity
    from sld.evaluation.summaries import distances

    measured = collections(options.pictures)
    reference = None
    if options.features is not None:
        reference = collections(options.reference)[0] if options.reference else measured[0]
        if measured == [reference]:
            raise ValueError(f"{options.pictures} is one set of pictures: name another one that it is compared with")
    if options.clip is not None and measured[0].source is None:
        raise ValueError(f"{options.pictures} is no run: --clip needs a run, which has the prompts")
    if options.out is not None:
        require_writable(options.out.parent)
    torch.set_num_threads(1)  # as in evaluate: with more threads results are rounded differently
    device = usable(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    extractor = None if options.features is None else load_extractor(options.features, device)
    clip = None if options.clip is None else _clip(options.clip, device)
    with tqdm(unit="picture", disable=not sys.stderr.isatty(), leave=False) as bar:
        found = fidelity(measured, reference, extractor, clip, options.subset_size, bar.update)
    print(distances(found))
    if options.out is not None:
        print(write_once(to_json(found), options.out))


def _clip(model: str, device: torch.device) -> tuple[CLIPEmbedder, CLIPTexts]:
    from sld.evaluation.classifiers.clip import CLIPEmbedder, CLIPTexts

    return CLIPEmbedder(model, device), CLIPTexts(model, device)


FIDELITY = Command(
    "fidelity",
    FidelityOptions,
    measure,
    "FID and KID of pictures against others, CLIP score against their prompts",
    "FID and KID of a run's configurations, or of a folder of pictures, against other pictures; CLIP score and CLIP "
    "distance of a run's pictures and their prompts. A run must have been made with --keep all.",
)
