"""Sidecars read again, for the picture that they describe."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sld.checkpoints.changes.opening import option_of
from sld.files import sha256
from sld.reading import read_json
from sld.spelling import shown

if TYPE_CHECKING:
    from sld.pipeline import Pipeline
    from sld.request import Request
    from sld.starting import PictureFile


@dataclass(frozen=True)
class Sidecar:
    """The content of a sidecar.

    Attributes:
        path: its file.
        request: of the picture.
        about: everything else, in plain values: the model, settings and versions that made it.
    """

    path: Path
    request: Request
    about: Mapping[str, Any]

    def warn_of_differences(self, pipe: Pipeline) -> None:
        """Warn where model, settings or versions are not those that made the picture.

        Raises:
            ValueError: the model is changed by other files than then, or by other scales.
        """
        from sld.request import about, first_edition

        then = {"batch": 1, **self.about}
        now = {**about(self.request, pipe), "batch": 1}
        del now["request"]
        before, after = (changes if isinstance(changes := one.pop("changes", []), list) else [] for one in (then, now))
        if [*map(_but_for_name, before)] != [*map(_but_for_name, after)]:
            raise ValueError(
                f"{self.path}: its picture was made with {_options(before)}, and the model has {_options(after)} now: "
                "give the same files, scales and words"
            )
        if "exact_batch" in then and "numerics" not in then:
            exact = then.pop("exact_batch")
            del now["numerics"]
            _warn(f"{first_edition(exact is True)}, numerics are {pipe.numerics} now: the picture may differ")
        if (batch := then.pop("batch")) != now.pop("batch"):
            _warn(
                f"the picture was made in a batch of {shown(batch)}, and is made alone now: its last bits may differ "
                "(with invariant numerics an image has the same bits in any batch)"
            )
        for key in dict.fromkeys((*then, *now)):
            if then.get(key) != now.get(key):
                _warn(f"{key} was {shown(then.get(key))} and is {shown(now.get(key))} now: the picture may differ")


def read_sidecar(path: Path, image: Path | None = None, mask: Path | None = None) -> Sidecar:
    """Return the content of a sidecar.

    The picture that it starts from, and its mask, are looked for where the sidecar says, then beside the sidecar.

    Args:
        path: the sidecar.
        image, mask: where the picture to start from and its mask are now; None to look for them.

    Raises:
        ValueError: the file is none, its request has a field that is missing, unknown, of another type or out of range,
            it is for the first edition's kept cross-attention, or a picture is lost; the message names file and field.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("request"), dict):
        raise ValueError(f'{path} is not a sidecar of sld generate: it holds no table "request"')
    values = content.pop("request")
    if (kept := values.get("cross_after")) is not None:
        raise ValueError(
            f"{path}: the first edition made this picture with cross-attention kept after evaluation {shown(kept)} "
            "(cross_after), an approximation that is gone: this picture cannot be made again; for the one without the "
            "approximation, remove cross_after from the file"
        )
    from sld.request import Request

    request = Request.from_dict(values, f"{path}: request")
    if (start := request.start) is not None:
        found = _found(start.image, "--image", image, path)
        covering = None if start.mask is None else _found(start.mask, "--mask", mask, path)
        request = replace(request, start=replace(start, image=found, mask=covering))
    return Sidecar(path, request, content)


def _found(picture: PictureFile, flag: str, given: Path | None, sidecar: Path) -> PictureFile:
    """Return the file of a picture that a sidecar names.

    Raises:
        ValueError: no file in question holds that picture.
    """
    beside = sidecar.with_name(Path(picture.path).name)
    places = [Path(picture.path), beside] if given is None else [given]
    for place in dict.fromkeys(places):
        if place.is_file() and sha256(place) == picture.sha256:
            return replace(picture, path=str(place))
    raise ValueError(
        f"{sidecar}: its picture starts from {picture.path} (sha256 {picture.sha256[:12]}…), which is not at "
        f"{' or '.join(map(str, dict.fromkeys(places)))}: say where it is with {flag}"
    )


def _but_for_name(change: Any) -> Any:
    """The record of a change without the name of its file, which may be called otherwise now."""
    return list(change.items())[1:] if isinstance(change, dict) else change


def _options(changes: list[Any]) -> str:
    """Changes as options of the command line, with the beginnings of their files' SHA-256."""
    told = [
        f"{option_of(one)} (sha256 {_beginning(one.get('sha256'))}…)"
        for one in changes
        if isinstance(one, dict) and one
    ]
    return " ".join(told) or "no changes"


def _beginning(sha256: Any) -> str:
    """The first digits of a file's SHA-256, or of the first of several files."""
    return str(next(iter(sha256.values()), "") if isinstance(sha256, dict) else sha256)[:12]


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)
