"""Checkpoints by their names on Hugging Face's hub, from its cache or downloaded into it.

    org/name               a repository in diffusers' format
    org/name@fp16          a branch, tag or commit of it
    org/name:file.ckpt     a single file in it

What the cache holds is used as it is, without asking the hub. Importing this loads no torch.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sld.checkpoints.files import PICKLES, SAFETENSORS, shard_names
from sld.checkpoints.kinds import require_whole
from sld.checkpoints.parts import FOLDERS, weight_files
from sld.checkpoints.remap import CheckpointError
from sld.data import path as path_of
from sld.hub import first_line, unreachable

_NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^:]+))?(?::(?P<file>.+))?")
_INDEX = "model_index.json"
_BESIDE = ("scheduler", "tokenizer", "tokenizer_2")


class HubName(NamedTuple):
    """The name of a checkpoint on the hub.

    Attributes:
        repository: organization and name.
        revision: branch, tag or commit; None for the main branch.
        file: a single file, by its path in the repository; None for the whole folder.
    """

    repository: str
    revision: str | None
    file: str | None

    @property
    def command(self) -> str:
        """The command that downloads it."""
        revision = f" --revision {self.revision}" if self.revision else ""
        return f"hf download {self.repository}{f' {self.file}' if self.file else ''}{revision}"


def hub_name(path: Path) -> HubName | None:
    """Return what a path names on the hub; None if it is a path here.

    Whatever exists here is a path, and so is what would lie in a folder that exists, or ends as a file of weights.
    """
    text = path.as_posix()
    found = _NAME.fullmatch(text)
    if found is None or path.exists() or Path(text.split("/")[0]).exists():
        return None
    if found["file"] is None and PurePosixPath(text).suffix.lower() in SAFETENSORS + PICKLES:
        return None
    return HubName(**found.groupdict())


def located(path: str | Path) -> Path:
    """Return where a checkpoint is here: the path itself, or that in the hub's cache of what it names.

    What is not in the cache is downloaded: the files that loading reads, in the first form that is there.

    Raises:
        CheckpointError: there is nothing there, or it is a part of a folder; or the cache lacks it and it cannot be
            downloaded: says why, and what to do.
        ValueError: the path is empty, or in the home folder of nobody.
    """
    path = path_of(path)
    name = hub_name(path)
    if name is not None:
        path = _cached(name) or _downloaded(name, path)
    require_whole(path)
    return path


def wanted(names: Collection[str]) -> list[str]:
    """Return which of a repository's files loading reads, without the shards that an index names.

    Args:
        names: all its files, as paths in it.
    """
    found = [_INDEX, "sld.json"] + [name for name in names if re.fullmatch(r"[^/]+/[^/]+\.(json|txt)", name)]
    found = [name for name in found if "/" not in name or name.split("/")[0] in (*FOLDERS, *_BESIDE)]
    found = [name for name in found if name in names and ".index." not in name]
    return found + [weights for folder in FOLDERS if (weights := _weights(folder, names))]


def _weights(folder: str, names: Collection[str]) -> str | None:
    """The file of a part's weights, or their index, in the first form that is there."""
    return next((name for file in weight_files(FOLDERS[folder]) if (name := f"{folder}/{file}") in names), None)


def _cached(name: HubName) -> Path | None:
    """Where the cache has all of it; None if it lacks something."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name.repository, name.file or _INDEX, revision=name.revision)
    if not isinstance(found, str):
        return None
    if name.file is not None:
        return Path(found)
    folder = Path(found).parent
    names = {file.relative_to(folder).as_posix() for file in folder.glob("*/*")}
    stated = [part for part in FOLDERS if (folder / part / "config.json").is_file()]
    weights = [_weights(part, names) for part in stated]
    whole = {"unet", "vae", "text_encoder"} <= {*stated} and None not in weights
    return folder if whole and set(_shards(folder, weights)) <= names else None


def _shards(folder: Path, weights: Collection[str | None]) -> list[str]:
    """The files that indices among weights name, as paths in the folder."""
    indices = [name for name in weights if name is not None and name.endswith(".json")]
    return [f"{name.split('/')[0]}/{shard}" for name in indices for shard in shard_names(folder / name)]


def _downloaded(name: HubName, path: Path) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    def fetch(files: Collection[str]) -> Path:
        patterns = [glob.escape(file) for file in files]
        return Path(snapshot_download(name.repository, revision=name.revision, allow_patterns=patterns))

    reason = unreachable(name.repository, name.file or _INDEX)
    try:
        if not reason:
            names = HfApi().list_repo_files(name.repository, revision=name.revision)
            if name.file is not None and name.file in names:
                beside = str(PurePosixPath(name.file).with_suffix(".yaml"))
                return fetch([name.file, beside]) / name.file
            if name.file is None and _INDEX in names:
                files = wanted(names)
                folder = fetch(files)
                shards = _shards(folder, [file for file in files if ".index." in file])
                return fetch(shards) if shards else folder
            single = [file for file in names if PurePosixPath(file).suffix.lower() in SAFETENSORS + PICKLES]
            shown = f"; it has {', '.join(single[:6])}: name one as {name.repository}:FILE" if single else ""
            reason = f"the hub's {name.repository} has no {name.file or _INDEX}{shown}"
            raise CheckpointError(f"{path}: {reason}")
    except CheckpointError:
        raise
    except Exception as error:  # of whatever library the hub's client is made with
        reason = f"downloading it failed ({first_line(error)})"
    raise CheckpointError(
        f"{path}: there is no such file or folder, the hub's cache has no whole checkpoint of this name, and {reason}: "
        f"run '{name.command}' once while online, or give the path of a checkpoint"
    )
