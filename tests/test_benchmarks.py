"""The benchmarks' every line, on a model so small that its times say nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.measure import Device, Ratio, Spent, Timing, by_turns, in_rounds, spent
from benchmarks.sides import LIMIT, difference

ROOT = Path(__file__).parent.parent


PARTS = ("memory", "unet", "numerics", "profile", "generate", "guidance", "embedded", "price")
KEYS = {
    "live_peak_bytes",
    "ratio_unet_eager",
    "ratio_unet_compiled",
    "ratio_unet_compiled_over_eager",
    "ratio_unet_3_rows_reference_beside_diffusers",
    "ratio_unet_3_rows_fast_beside_diffusers",
    "ratio_unet_6_rows_invariant_beside_reference",
    "ratio_pictures_batch_1_fast_beside_diffusers",
    "ratio_pictures_batch_2_invariant_beside_reference",
    "ratio_pictures_batch_2_invariant_beside_fast",
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
    ratios = [value for key, value in results.items() if key.startswith("ratio_")]
    assert all(value.startswith("noise") if isinstance(value, str) else value > 0 for value in ratios)
    assert results["unet_3_rows_difference_reference"] == results["unet_6_rows_difference_reference"] == 0
    assert (results["guidance_kernels"], results["recompilations"]) == (1, 0)


def test_times_are_taken_by_turns():
    """Mutants that failed: one side always first, the ratio upside down."""
    order: list[str] = []
    timing = by_turns(Device("cpu"), lambda: order.append("a"), lambda: order.append("b"), 3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert len(timing.ours) == len(timing.theirs) == 3
    assert Ratio.of([1.0, 2.0, 3.0], [4.0, 4.0, 4.0]).value == 2.0


def test_every_side_of_a_round_is_the_first_of_one_in_turn():
    order: list[str] = []
    sides = {name: lambda name=name: order.append(name) for name in "abc"}
    times = in_rounds(Device("cpu"), sides, 3, warm=False)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert {name: len(taken) for name, taken in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_pairs_that_differ_too_much_are_called_noise_and_give_no_number():
    """Mutants that failed: the greatest pair compared with the median, a bound on times in place of ratios."""
    slower_and_slower = Timing([Spent(1, 1), Spent(10, 1)], [Spent(2, 3), Spent(20, 3)])
    assert (slower_and_slower.ratio, slower_and_slower.processor.told) == (2.0, 3.0)

    disturbed = Timing([Spent(1, 1), Spent(1, 1)], [Spent(2, 3), Spent(3.1, 3)])
    assert disturbed.ratio == disturbed.to_dict()["ratio"] == "noise: pairs from 2.00 to 3.10"
    assert disturbed.to_dict()["processor_ratio"] == 3.0


def test_the_processors_time_counts_child_processes_and_no_waiting():
    code = "import time; start = time.process_time()\nwhile time.process_time() < start + 0.2: pass"
    child = spent(Device("cpu"), lambda: subprocess.run([sys.executable, "-c", code], check=True))
    assert child.processor >= 0.2
    sleep = spent(Device("cpu"), lambda: time.sleep(0.2))
    assert sleep.clock >= 0.2 > 0.1 > sleep.processor


COMMAND_WITHOUT_PARTS = """
import os, sys
from benchmarks import __main__ as command
sys.modules["benchmarks.run"], command.run, sys.argv[1:] = command, lambda options: None, []
command.main()
print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
"""


def test_threads_sleep_while_they_wait():
    """The command says so before torch is imported, but where its caller has said something else."""
    before = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for given, expected in ({}, "passive False"), ({"OMP_WAIT_POLICY": "active"}, "active False"):
        command = [sys.executable, "-c", COMMAND_WITHOUT_PARTS]
        made = subprocess.run(command, cwd=ROOT, env=before | given, check=True, capture_output=True, text=True)
        assert made.stdout.split("\n")[0] == expected


def test_times_of_different_pictures_are_refused():
    picture = torch.zeros(1, 3, 8, 8)
    assert difference(picture, picture + LIMIT / 2) == pytest.approx(LIMIT / 2)
    with pytest.raises(RuntimeError, match="the two sides' pictures differ by"):
        difference(picture, picture + 2 * LIMIT)
    with pytest.raises(RuntimeError):
        difference(picture, torch.full_like(picture, torch.nan))
