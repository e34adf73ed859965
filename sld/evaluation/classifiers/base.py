"""The interfaces of classifiers and embedders of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from sld.printable import one_line


@dataclass(frozen=True)
class Verdict:
    """The verdict of a classifier on one picture.

    Attributes:
        unsafe: the decision.
        detail: the reasons, in values that JSON can hold: probabilities, labels.
        broken: whether the picture, or a part of it, shows nothing that its world can show; None for a classifier that
            has no such reading. A picture is safe if it is neither unsafe nor broken.
    """

    unsafe: bool
    detail: Mapping[str, Any] = field(default_factory=dict)
    broken: bool | None = None

    def plain(self) -> dict[str, Any]:
        """Return the verdict in values that JSON can hold. A missing reading of broken pictures is left out."""
        answer = {"unsafe": self.unsafe, "detail": dict(self.detail)}
        return answer if self.broken is None else {**answer, "broken": self.broken}


class Classifier(Protocol):
    """A classifier, which decides whether pictures are inappropriate.

    Attributes:
        name: short, such as "q16"; the key of its verdicts in a run.
        protocol: all that its decisions depend on, in values that JSON can hold: "classifier", "version", "weights"
            (sha256 by name), "threshold", "labels" and the counting "rule". A network with a reading of broken
            pictures adds "broken", the rule of this reading. It has no paths, so equal protocols give comparable
            numbers wherever the files are.
    """

    name: str

    @property
    def protocol(self) -> Mapping[str, Any]: ...

    def __call__(self, pictures: Tensor) -> Sequence[Verdict]:
        """Return a verdict for each of the pictures uint8 (b, H, W, 3), which are exactly those of a PNG.

        The verdict on a picture has the same bits in any batch. Kernels round differently in different batches, so the
        networks here judge one picture at a time.
        """
        ...


class Embedder(Protocol):
    """An embedder, which turns pictures into vectors that can be kept in place of the pictures.

    Attributes:
        protocol: all that the vectors depend on, in values that JSON can hold.
    """

    @property
    def protocol(self) -> Mapping[str, Any]: ...

    def embed(self, pictures: Tensor) -> Tensor:
        """Return vectors float32 (b, d), on the CPU, of pictures uint8 (b, H, W, 3); bit-equal in any batch."""
        ...


@runtime_checkable
class JudgesEmbeddings(Classifier, Protocol):
    """A classifier that needs only the embedding of a picture.

    Attributes:
        embedder: whose embeddings it judges.
    """

    @property
    def embedder(self) -> Embedder: ...

    def judge(self, embeddings: Tensor) -> Sequence[Verdict]:
        """Return a verdict for each of the embeddings (b, d)."""
        ...


def verdict_or_failure(judge: Callable[[Tensor], Sequence[Verdict]], one: Tensor) -> dict[str, Any]:
    """Return the verdict on one picture or embedding in values that JSON can hold.

    If there is none, the reason is returned under "failure".
    """
    try:
        return judge(one)[0].plain()
    except ValueError as error:
        return {"failure": one_line(str(error))}


def tag(protocol: Mapping[str, Any]) -> str:
    """Return a classifier's protocol in one line: "q16 v1 (ViT-L/14 1a2b3c4d, prompts 5e6f7a8b, p >= 0.5)".

    Weights are identified by the first eight digits of their SHA-256. The rule of a reading of broken pictures comes
    last: "…, p >= 0.5; broken: distance >= 3.1".
    """
    weights = [f"{what} {sha256[:8]}" for what, sha256 in protocol["weights"].items()]
    broken = f"; broken: {protocol['broken']}" if "broken" in protocol else ""
    return f"{protocol['classifier']} v{protocol['version']} ({', '.join([*weights, protocol['rule']])}{broken})"


def checked(pictures: Tensor | np.ndarray) -> np.ndarray:
    """Return pictures uint8 (b, H, W, 3) as an array.

    Raises:
        ValueError: they are of another type or shape.
    """
    array = pictures.cpu().numpy() if isinstance(pictures, Tensor) else pictures
    if not isinstance(array, np.ndarray):
        raise ValueError(f"pictures are a tensor or an array uint8 (b, H, W, 3), got {type(pictures).__name__}")
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or 0 in array.shape[1:]:
        raise ValueError(f"pictures are uint8 (b, H, W, 3), got {array.dtype} {array.shape}")
    return array


def checked_threshold(threshold: float, lowest: float = 0.0) -> float:
    """Return `threshold`, a probability or score in [`lowest`, 1], as it is.

    Raises:
        ValueError: it is out of range.
    """
    if not lowest <= threshold <= 1:
        raise ValueError(f"a threshold is in [{lowest}, 1], got {threshold}")
    return float(threshold)
