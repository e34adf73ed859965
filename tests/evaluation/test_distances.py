"""Distances of pictures and of sets of pictures: against torchmetrics, closed forms and plain loops.

Mutants that fail here:
- `FrechetStatistics`: no term between means in `merge`; means weighted equally; n for n - 1; float32.
- `frechet_distance`: the root's transpose forgotten; 1 for 2 overlaps; rounding kept in `_root`.
- `kernel_distance`: the diagonal kept; n^2 for n (n - 1); no + 1; the subsets' generators mixed up; sample deviation.
- `clip_score`: no clamp, `clip_distance`: a clamp; embeddings not normalised.
- `rms`: uint8 arithmetic; the mean over the batch.
- `ssim`: sigma 1; edges not mirrored; K1 and K2 swapped.
"""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from conftest import ALGORITHM
from torch import Tensor, nn

from sld.evaluation.distances import (
    FrechetStatistics,
    clip_distance,
    clip_score,
    frechet_distance,
    frechet_statistics,
    kernel_distance,
    rms,
    ssim,
)


class AsTheyAre(nn.Module):
    """Features of features, for torchmetrics asks for a network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


def cloud(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + shift


def test_the_frechet_distance_is_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = cloud(200, 16, 0), cloud(300, 16, 1, shift=3)
    metric = fid.FrechetInceptionDistance(feature=AsTheyAre(16), input_img_size=(16,))
    metric.update(a, real=True)
    metric.update(b, real=False)
    ours = frechet_distance(frechet_statistics(a.split(7)), frechet_statistics(b.split(64)))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-9)


def test_the_frechet_distance_of_independent_features_is_that_of_each():
    # signs in all combinations have exactly this mean and a diagonal covariance
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    a, b = signs * torch.tensor([1.0, 2]), signs * torch.tensor([3.0, 0.5]) + torch.tensor([1.0, 0])
    expected = 1.0
    for deviation_a, deviation_b in ((1, 3), (2, 0.5)):
        expected += (deviation_a - deviation_b) ** 2 * 4 / 3
    assert frechet_distance(FrechetStatistics.of(a), FrechetStatistics.of(b)) == pytest.approx(expected, rel=1e-12)


def test_the_frechet_distance_is_exact_with_fewer_pictures_than_features():
    a, b = cloud(40, 200, 0), cloud(45, 200, 1)
    # the root's trace from the pictures themselves, without a covariance
    x, y = ((f - f.mean(0)) / math.sqrt(len(f) - 1) for f in (a, b))
    spread = x.square().sum() + y.square().sum() - 2 * torch.linalg.matrix_norm(x @ y.T, "nuc")
    expected = float((a.mean(0) - b.mean(0)).square().sum() + spread)
    assert frechet_distance(FrechetStatistics.of(a), FrechetStatistics.of(b)) == pytest.approx(expected, rel=1e-12)


def test_statistics_in_batches_and_of_processes_are_those_of_all_features():
    everything = cloud(101, 5, 2, shift=100).float()
    one, other = frechet_statistics(everything[:60].split(1)), frechet_statistics(everything[60:].split(9))
    merged = one.merge(other)
    assert merged.count == 101
    torch.testing.assert_close(merged.mean, everything.double().mean(0), **ALGORITHM)
    torch.testing.assert_close(merged.covariance, torch.cov(everything.double().T), **ALGORITHM)


@pytest.mark.parametrize(
    ("a", "b", "message"), [((1, 3), (5, 3), "at least 2 pictures"), ((5, 3), (5, 4), "3 features")]
)
def test_statistics_that_have_no_distance_are_an_error(a, b, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(FrechetStatistics.of(torch.rand(a)), FrechetStatistics.of(torch.rand(b)))


def test_no_features_have_no_statistics():
    with pytest.raises(ValueError, match="needs features"):
        frechet_statistics([])


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_the_kernel_distance_is_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = cloud(60, 12, 0), cloud(90, 12, 1, shift=1)
    metric = kid.KernelInceptionDistance(feature=AsTheyAre(12), subsets=7, subset_size=40)
    metric.set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    torch.manual_seed(5)
    expected = [float(value) for value in metric.compute()]
    assert kernel_distance(a, b, subsets=7, subset_size=40, seed=5) == pytest.approx(expected, rel=1e-9)


def test_the_kernel_distance_is_that_of_plain_loops():
    a, b = cloud(4, 3, 0), cloud(4, 3, 1)

    def kernel(x: Tensor, y: Tensor) -> float:
        return (sum(float(p) * float(q) for p, q in zip(x, y, strict=True)) / 3 + 1) ** 3

    same = sum(kernel(f[i], f[j]) for f in (a, b) for i in range(4) for j in range(4) if i != j) / (4 * 3)
    cross = sum(kernel(x, y) for x in a for y in b) / 16
    mean, deviation = kernel_distance(a, b, subsets=3, subset_size=4)
    assert mean == pytest.approx(same - 2 * cross, rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-9 * abs(mean))  # all subsets are the whole


def test_subsets_larger_than_the_sets_are_an_error():
    with pytest.raises(ValueError, match="subsets of 6 from 9 and 5"):
        kernel_distance(torch.rand(9, 3), torch.rand(5, 3), subset_size=6)


def test_clip_score_and_distance_are_of_directions():
    image, text = torch.tensor([[3.0, 4], [1, 0], [2, 0]]), torch.tensor([[4.0, 3], [0, 5], [-7, 0]])
    assert clip_score(image, text).tolist() == pytest.approx([96, 0, 0])
    assert clip_distance(image, text).tolist() == pytest.approx([0.04, 1, 2])


def pictures(b: int, h: int = 24, w: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    a = generator.integers(0, 256, (b, h, w, 3), dtype=np.uint8)
    return a, (a + generator.integers(-40, 40, a.shape)).clip(0, 255).astype(np.uint8)


def test_rms_is_that_of_plain_loops():
    a, b = pictures(2, 5, 4)
    for x, y, value in zip(a, b, rms(a, b), strict=True):
        total = sum((int(p) / 255 - int(q) / 255) ** 2 for p, q in zip(x.ravel(), y.ravel(), strict=True))
        assert value == pytest.approx(math.sqrt(total / x.size), rel=1e-12)
    black, white = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    assert rms(black, white) == rms(white, black) == [1.0]


def test_ssim_is_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.image")
    a, b = pictures(3)
    b[1] = a[1]
    x, y = (torch.from_numpy(p).permute(0, 3, 1, 2).double() / 255 for p in (a, b))
    expected = functional.structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    assert ssim(a, b) == pytest.approx(expected.tolist(), rel=1e-9)
    assert ssim(a, b)[1] == 1


def test_ssim_of_flat_pictures_is_that_of_their_means():
    dark, light = np.full((1, 11, 11, 3), 51, np.uint8), np.full((1, 11, 11, 3), 204, np.uint8)
    expected = (2 * 0.2 * 0.8 + 0.01**2) / (0.2**2 + 0.8**2 + 0.01**2)
    assert ssim(dark, light) == pytest.approx([expected], rel=1e-9)


@pytest.mark.parametrize("distance", [rms, ssim])
def test_distances_of_pictures_are_equal_to_the_bit_in_any_batch(distance):
    a, b = pictures(7, 64, 64)
    alone = [value for k in range(7) for value in distance(a[k : k + 1], b[k : k + 1])]
    assert distance(a, b) == alone == distance(a[::-1], b[::-1])[::-1]


@pytest.mark.parametrize("distance", [rms, ssim])
def test_distances_need_bytes_of_one_shape(distance):
    a, b = pictures(2)
    for wrong in (b[:1], b[0], b / 255):
        with pytest.raises(ValueError, match="uint8"):
            distance(a, wrong)


def test_pictures_smaller_than_the_window_have_no_ssim():
    with pytest.raises(ValueError, match="11 pixels wide, the pictures are 24 x 10"):
        ssim(*pictures(1, 24, 10))


def test_ssim_of_a_small_picture_takes_less_than_two_milliseconds():
    a, b = pictures(20, 64, 64)
    start = time.process_time()
    ssim(a, b)
    assert (time.process_time() - start) / 20 < 2e-3
