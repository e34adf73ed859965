"""Distances of pictures from reference pictures, from their prompts, and from the same pictures without guidance."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn.functional import cosine_similarity

SSIM_WINDOW = 11


@dataclass(frozen=True)
class FrechetStatistics:
    """Mean and scatter of features for a Fréchet distance, in float64. Its size does not grow with the pictures.

    Attributes:
        count: pictures.
        mean: (d,).
        scatter: (d, d), the sum of outer products of deviations from the mean.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> FrechetStatistics:
        """Return the statistics of features (n, d), n >= 1."""
        features = features.to("cpu", torch.float64)
        mean = features.mean(0)
        deviations = features - mean
        return cls(len(features), mean, deviations.T @ deviations)

    def merge(self, other: FrechetStatistics) -> FrechetStatistics:
        """Return the statistics of both sets of features together (Chan, Golub and LeVeque, 1979, Eq. 2.1)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        between = torch.outer(shift, shift) * (self.count * other.count / count)
        return FrechetStatistics(count, mean, self.scatter + other.scatter + between)

    def update(self, features: Tensor) -> FrechetStatistics:
        """Return the statistics with features (n, d) added."""
        return self.merge(FrechetStatistics.of(features))

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance (d, d) of the features.

        Raises:
            ValueError: there are fewer than two pictures.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 pictures, not {self.count}")
        return self.scatter / (self.count - 1)


def frechet_statistics(batches: Iterable[Tensor]) -> FrechetStatistics:
    """Return the statistics of features that come in batches (b, d); one batch is held at a time.

    Raises:
        ValueError: there are none.
    """
    statistics = None
    for batch in batches:
        statistics = statistics.update(batch) if statistics else FrechetStatistics.of(batch)
    if statistics is None:
        raise ValueError("needs features to describe")
    return statistics


def frechet_distance(a: FrechetStatistics, b: FrechetStatistics) -> float:
    """Return the squared Fréchet distance of two Gaussians (Dowson and Landau, 1982). Of Inception features it is FID.

    The trace of the root of a product of covariances is the sum of the singular values of the product of their roots.
    This needs no root of an unsymmetric matrix, and is exact also with fewer pictures than features.

    Raises:
        ValueError: a side has fewer than two pictures, or the numbers of features differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"cannot compare {len(a.mean)} features with {len(b.mean)}")
    cov_a, cov_b = a.covariance, b.covariance
    overlap = torch.linalg.svdvals(_root(cov_a).T @ _root(cov_b)).sum()
    return float((a.mean - b.mean).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap)


def _root(covariance: Tensor) -> Tensor:
    """Return R with R R^T = `covariance` (d, d), without directions whose variance is no more than rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors * torch.where(values > floor, values, 0).sqrt()


def kernel_distance(
    a: Tensor, b: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the kernel distance KID (Bińkowski et al., ICLR 2018): an unbiased squared MMD with (x.y / d + 1)^3.

    Args:
        a, b: features (n, d). Subsets are drawn in this order, as in torchmetrics.
        subsets: number of subsets.
        subset_size: pictures in each.
        seed: of the subsets.

    Returns:
        The mean over the subsets, and its population standard deviation.

    Raises:
        ValueError: there are fewer pictures than in a subset, or subsets have fewer than two pictures.
    """
    if not 2 <= subset_size <= min(len(a), len(b)):
        raise ValueError(
            f"cannot draw subsets of {subset_size} from {len(a)} and {len(b)} pictures, 2 or more from each"
        )
    a, b = a.to("cpu", torch.float64), b.to("cpu", torch.float64)
    generator = torch.Generator().manual_seed(seed)
    distances = torch.empty(subsets, dtype=torch.float64)
    for k in range(subsets):
        x, y = (f[torch.randperm(len(f), generator=generator)[:subset_size]] for f in (a, b))
        distances[k] = _off_diagonal(_kernel(x, x)) + _off_diagonal(_kernel(y, y)) - 2 * _kernel(x, y).mean()
    return float(distances.mean()), float(distances.std(correction=0))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _off_diagonal(kernel: Tensor) -> Tensor:
    """Return the mean of a kernel (n, n) over pairs of different pictures."""
    n = len(kernel)
    return (kernel.sum() - kernel.trace()) / (n * (n - 1))


def clip_score(image: Tensor, text: Tensor) -> Tensor:
    """Return 100 max(cos, 0) of each picture and its prompt; higher is closer.

    torchmetrics' CLIPScore of a set takes the maximum of the mean and 0; here it is taken for each picture. The results
    differ only if a cosine is negative.

    Args:
        image, text: CLIP's projected embeddings (n, d), normalised or not.

    Returns:
        float64 (n,), in [0, 100].
    """
    return 100 * (1 - clip_distance(image, text)).clamp(min=0)


def clip_distance(image: Tensor, text: Tensor) -> Tensor:
    """Return the cosine distance 1 - cos of each picture and its prompt, in [0, 2]; lower is closer.

    This is our reading of the paper's "CLIP distance", which the authors' code does not define.

    Args:
        image, text: CLIP's projected embeddings (n, d), normalised or not.

    Returns:
        float64 (n,).
    """
    return 1 - cosine_similarity(image.to("cpu", torch.float64), text.to("cpu", torch.float64))


def rms(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Return the root mean square difference of each pair of pictures, with values in [0, 1]; bit-equal in any batch.

    Args:
        a, b: pictures uint8 (b, H, W, 3).

    Raises:
        ValueError: the shapes differ, or an array is not of pictures.
    """
    _require_alike(a, b)
    squares = np.square(a.astype(np.int64) - b).sum(axis=(1, 2, 3))  # whole numbers: any order of summation
    return [math.sqrt(total / a[0].size) / 255 for total in squares.tolist()]


def ssim(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Return the structural similarity of each pair of pictures, in [-1, 1]; bit-equal in any batch.

    The definition is that of Wang et al. (IEEE Transactions on Image Processing 13, 2004): means and variances of a
    Gaussian window of 11 pixels, sigma 1.5; K1 = 0.01 and K2 = 0.03, of values in [0, 1]. Like torchmetrics we take the
    mean over all pixels and the three colours, with pictures mirrored at their edges; others leave out pixels near the
    edges.

    Args:
        a, b: pictures uint8 (b, H, W, 3), H and W at least 11.

    Raises:
        ValueError: the shapes differ, an array is not of pictures, or they are too small.
    """
    _require_alike(a, b)
    if min(a.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"SSIM's window is {SSIM_WINDOW} pixels wide, the pictures are {a.shape[1]} x {a.shape[2]}")
    return [_ssim(x / 255, y / 255) for x, y in zip(a, b, strict=True)]


def _ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Return the SSIM of two pictures (H, W, 3) in [0, 1]. The sums of a batch would be in another order."""
    maps = np.stack((x, y, x * x + y * y, x * y))
    mean_x, mean_y, squares, products = gaussian_filter(
        maps, sigma=1.5, radius=SSIM_WINDOW // 2, mode="mirror", axes=(1, 2)
    )
    both, sum_of_squares = mean_x * mean_y, mean_x**2 + mean_y**2
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * both + c1) / (sum_of_squares + c1)
    return float(np.mean(luminance * (2 * (products - both) + c2) / (squares - sum_of_squares + c2)))  # Eq. 13


def _require_alike(a: np.ndarray, b: np.ndarray) -> None:
    if not (a.shape == b.shape and a.ndim == 4 and a.dtype == b.dtype == np.uint8):
        raise ValueError(
            f"needs pictures uint8 (b, H, W, 3) of one shape, not {a.dtype} {a.shape} and {b.dtype} {b.shape}"
        )
