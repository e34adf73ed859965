"""The training loop: what it draws, what it keeps, and that an interruption changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import EXACT
from torch import Tensor, nn

from sld.testbed.fit import Recipe, average_gradients, averaged, fit

RECIPE = Recipe(steps=6, batch=4, rate=1e-2, ema=0.9, warmup=2, decay=0.0, save_every=3)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 2))


class Copying:
    """The loss of a network that is to give back what it gets."""

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, 3, generator=generator),)

    def __call__(self, network: nn.Module, *drawn: Tensor) -> dict[str, Tensor]:
        (x,) = drawn
        error = (network(x) - x[:, :2]) ** 2
        return {"loss": error.mean(), "worst": error.max()}


loss = Copying()


def train(folder: Path, recipe: Recipe = RECIPE, ahead: int = 0) -> nn.Module:
    return fit("tiny", network(), loss, recipe, folder, report=lambda line: None, ahead=ahead)


def test_a_run_in_two_parts_equals_one_in_one_go(tmp_path):
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", replace(RECIPE, steps=3))
    parts = train(tmp_path / "parts")
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), **EXACT)
    for name in ("network", "optimizer", "average"):
        saved = [torch.load(tmp_path / run / "tiny.pt", weights_only=True)[name] for run in ("whole", "parts")]
        torch.testing.assert_close(saved[1], saved[0], **EXACT)


def test_data_that_other_processes_draw_ahead_are_the_same(tmp_path):
    alone, helped = train(tmp_path / "alone"), train(tmp_path / "helped", ahead=2)
    torch.testing.assert_close(helped.state_dict(), alone.state_dict(), **EXACT)


def test_a_finished_run_is_not_trained_further(tmp_path):
    first = train(tmp_path)
    torch.testing.assert_close(train(tmp_path).state_dict(), first.state_dict(), **EXACT)
    assert len((tmp_path / "tiny.jsonl").read_text().splitlines()) == 2


def test_the_average_is_what_comes_back_and_what_a_reader_of_the_checkpoint_gets(tmp_path):
    trained = train(tmp_path)
    assert not trained.training
    torch.testing.assert_close(averaged("tiny", network(), tmp_path).state_dict(), trained.state_dict(), **EXACT)
    last = torch.load(tmp_path / "tiny.pt", weights_only=True)["network"]
    assert not torch.equal(last["0.weight"], trained.state_dict()["0.weight"])


def test_the_log_has_one_whole_object_a_line_and_no_partial_checkpoint_is_left(tmp_path):
    train(tmp_path, replace(RECIPE, steps=7))
    entries = [json.loads(line) for line in (tmp_path / "tiny.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [3, 6, 7]
    assert all(0 < entry["loss"] < entry["worst"] for entry in entries)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.jsonl", "tiny.pt"]


def test_every_step_draws_other_numbers_and_a_seed_fixes_them(tmp_path):
    def drawn(folder: Path, seed: int) -> list[float]:
        numbers = []

        class Noting(Copying):
            def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, ...]:
                numbers.append(torch.rand((), generator=generator).item())
                return super().draw(generator, batch)

        fit("tiny", network(), Noting(), replace(RECIPE, seed=seed), folder, report=lambda line: None)
        return numbers

    first, again, other = drawn(tmp_path / "a", 0), drawn(tmp_path / "b", 0), drawn(tmp_path / "c", 1)
    assert first == again and len(set(first + other)) == 12


def test_a_steep_gradient_is_clipped(tmp_path):
    module, norms = network(), []

    class Steep(Copying):
        def __call__(self, network: nn.Module, *drawn: Tensor) -> dict[str, Tensor]:
            return {"loss": 1e6 * super().__call__(network, *drawn)["loss"]}

    def note(line: str) -> None:
        norms.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).norm().item())

    fit("tiny", module, Steep(), replace(RECIPE, save_every=1, clip=0.5), tmp_path, note)
    assert norms == pytest.approx([0.5] * 6)


def test_a_frozen_parameter_is_left_alone(tmp_path):
    module, untrained = network(), network().state_dict()
    module.get_parameter("0.weight").requires_grad_(False)
    trained = fit("tiny", module, loss, RECIPE, tmp_path, report=lambda line: None).state_dict()
    torch.testing.assert_close(trained["0.weight"], untrained["0.weight"], **EXACT)
    assert not torch.equal(trained["2.weight"], untrained["2.weight"])


def test_the_rate_warms_up_stays_and_falls_to_zero():
    recipe = Recipe(steps=100, batch=1, rate=0.5, warmup=10, decay=0.2)
    rates = [recipe.rate_at(step) for step in range(101)]
    assert rates[:10] == pytest.approx([0.05 * k for k in range(1, 11)])
    assert set(rates[10:81]) == {0.5}
    assert rates[80:] == pytest.approx([0.025 * k for k in range(20, -1, -1)])


def _average(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    gradient = torch.tensor([1.0, 10.0]) * (rank + 1)
    average_gradients(gradient)
    torch.save(gradient, folder / f"gradient-{rank}.pt")
    trained = fit("tiny", network(), loss, RECIPE, folder, report=lambda line: None)
    torch.save(trained.state_dict(), folder / f"trained-{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_share_the_mean_gradient_and_so_their_weights(tmp_path):
    mp.spawn(_average, (tmp_path,), nprocs=2)
    gradients, trained = (
        [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]
        for name in ("gradient", "trained")
    )
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.tensor([1.5, 15.0]), **EXACT)
    torch.testing.assert_close(trained[1], trained[0], **EXACT)
    assert len((tmp_path / "tiny.jsonl").read_text().splitlines()) == 2
