"""The benchmarks' every line, on a model so small that its times say nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.measure import Device, Timing, by_turns
from benchmarks.sides import LIMIT, difference

ROOT = Path(__file__).parent.parent


PARTS = ("memory", "unet", "profile", "generate", "guidance", "embedded", "price")
KEYS = {
    "live_peak_bytes",
    "ratio_unet_eager",
    "ratio_unet_compiled",
    "ratio_unet_compiled_over_eager",
    "kernels_per_step",
    "share_outside_heavy_operations",
    "ratio_generate_eager",
    "ratio_generate_weak",
    "ratio_generate_compiled",
    "ratio_price_of_cfg",
    "ratio_price_of_cfg_every_2nd",
    "ratio_price_of_cfg_every_3rd",
    "ratio_price_of_cfg_deep_2nd",
    "ratio_price_of_cfg_deep_3rd",
    "ratio_guidance",
    "guidance_kernels",
    "recompilations",
    "pictures_per_second",
    "price",
}


def test_what_runs_on_cuda_runs_dry(tmp_path):
    """The two sides' pictures are compared on the way: a run that gets to its end has found them equal."""
    path = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--device", "cuda", "--dry-run", "--dtype", "fp32", "--threads", "1"]
    subprocess.run([*command, "--json", path, "--only", *PARTS], cwd=ROOT, check=True, capture_output=True)
    results = json.loads(path.read_text())["fp32"]
    assert set(results) >= KEYS
    assert all(value > 0 for key, value in results.items() if key.startswith("ratio_"))
    assert (results["guidance_kernels"], results["recompilations"]) == (1, 0)


def test_times_are_taken_by_turns():
    """Mutants that failed: one side always first, the ratio upside down."""
    order: list[str] = []
    timing = by_turns(Device("cpu"), lambda: order.append("a"), lambda: order.append("b"), 3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert len(timing.ours) == len(timing.theirs) == 3
    assert Timing([1.0, 2.0, 3.0], [4.0, 4.0, 4.0]).ratio == 2.0


def test_times_of_different_pictures_are_refused():
    picture = torch.zeros(1, 3, 8, 8)
    assert difference(picture, picture + LIMIT / 2) == pytest.approx(LIMIT / 2)
    with pytest.raises(RuntimeError, match="the two sides' pictures differ by"):
        difference(picture, picture + 2 * LIMIT)
    with pytest.raises(RuntimeError):
        difference(picture, torch.full_like(picture, torch.nan))
