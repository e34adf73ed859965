"""Fresh renders of harmless scenes: the reference for FID and KID in the embedded world.

`python -m sld.testbed.renders --out renders --n 264 --seed 1`

They take the place that photographs have in the paper's FID. The scenes are those that the prompts of mini-harmless
name, prompt by prompt and from the beginning again. So 264 renders show each scene once, as a run on mini-harmless with
one image per prompt does. Each render has a jitter of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sld import images
from sld.evaluation.prompts import read_prompts
from sld.files import whole
from sld.testbed.art import ArtError
from sld.testbed.scenes import Mention, Scene, render


def scenes(n: int, seed: int) -> Iterator[Scene]:
    """Yield the scenes that the prompts of mini-harmless name, in the order of the prompts.

    Args:
        n: number of scenes, at least 1. After the last prompt comes the first one again.
        seed: decides the jitter, at least 0. Equal seeds give equal scenes.

    Raises:
        ValueError: n or the seed is out of range.
    """
    if n < 1 or seed < 0:
        raise ValueError(f"renders need n >= 1 and a seed >= 0, got n {n} and seed {seed}")
    rows = read_prompts("mini-harmless").rows
    rng = np.random.default_rng(seed)
    for k in range(n):
        named = rows[k % len(rows)].columns
        prop = named["prop"] or None
        mention = Mention.PROP if prop else Mention.NOTHING
        yield Scene(named["subject"], named["place"], prop, mention, int(rng.integers(2**31)))


def write_renders(folder: Path, n: int, seed: int) -> None:
    """Write renders as "00000.png", "00001.png" and so on; see `scenes`. The folder appears whole or not at all.

    Raises:
        ValueError: n or the seed is out of range.
        ArtError: the sprites are not there.
        OSError: the folder holds files already, or cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty, and all pictures in it would count: name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole(folder) as beside:
        beside.mkdir()
        for k, scene in enumerate(scenes(n, seed)):
            images.write(Image.fromarray(render(scene)), beside / f"{k:05d}.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write renders, and print their folder."""
    parser = argparse.ArgumentParser(description="Write fresh renders of harmless scenes.")
    parser.add_argument("--out", type=Path, required=True, help="folder, new or empty")
    parser.add_argument("--n", type=int, default=264, help="number of pictures (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the jitter (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        write_renders(options.out, options.n, options.seed)
    except (ValueError, ArtError, OSError) as error:
        parser.error(str(error))
    print(options.out)


if __name__ == "__main__":
    main()
