"""The erased model: ESD's loss, what it trains, and its file.

Mutants seen to fail here: eta left out, its sign turned, the changed model as its own target, latents of the original
model, the other parameters trained.
"""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import EXACT

import sld
from sld.testbed import erase
from sld.testbed.erase import RECIPE, ErasureLoss


@pytest.fixture
def pipe(monkeypatch):
    monkeypatch.setattr(erase, "_EVALUATIONS", 2)
    return sld.load()


def changed(unet):
    other = copy.deepcopy(unet)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.01)
    return other


def test_the_target_is_what_the_original_predicts_without_text_minus_eta_times_what_the_concept_adds(pipe):
    loss, student = ErasureLoss(pipe, "death", 0.5), changed(pipe.unet)
    done, seeds = loss.draw(torch.Generator().manual_seed(0), 2)
    x, t = loss._latents(student, int(done), seeds.tolist())

    named, unnamed = pipe.encode(["death"] * 2), pipe.encode([""] * 2)
    with torch.no_grad():
        e_0, e_c, now = pipe.unet(x, t, unnamed), pipe.unet(x, t, named), student(x, t, named)
    expected = (now - (1.5 * e_0 - 0.5 * e_c)).square().mean()

    torch.testing.assert_close(loss(student, done, seeds)["loss"].detach(), expected)


def test_latents_are_the_changed_models_own(pipe):
    loss = ErasureLoss(pipe, "death", 1.0)
    drawn = [
        loss._latents(unet, done, [seed])
        for seed, done in enumerate((0, 1))
        for unet in (pipe.unet, changed(pipe.unet))
    ]
    apart = {t.item(): (a - b).abs().max().item() for (a, t), (b, _) in zip(drawn[::2], drawn[1::2], strict=True)}
    first, second = sorted(apart, reverse=True)
    assert apart[first] == 0 < apart[second]  # the noise, and what one evaluation makes of it


@pytest.mark.parametrize("method", ["u", "x"])
def test_a_method_trains_its_parameters_alone_and_the_file_is_a_changed_model(method, pipe, tmp_path):
    recipe = replace(RECIPE, steps=1, batch=1)
    before = {name: p.clone() for name, p in pipe.unet.named_parameters()}

    file = erase.erase(pipe, "death", tmp_path, method=method, eta=1.0, recipe=recipe)

    moved = {name for name, p in pipe.unet.named_parameters() if not torch.equal(p, before[name])}
    assert moved and {".cross." in name for name in moved} == {method == "x"}
    loaded = sld.load(changes={"unet": file}).unet.state_dict()
    half = {name: p.half().float() for name, p in pipe.unet.state_dict().items()}
    torch.testing.assert_close(loaded, half, **EXACT)


def test_weights_in_another_layout_learn_the_same(pipe, tmp_path):
    """Models on CUDA have their channels innermost. Mutant that failed: weights left so."""
    recipe, before = replace(RECIPE, steps=1, batch=1), copy.deepcopy(pipe.unet.state_dict())
    moved = []
    for name, model in {"usual": pipe, "innermost": sld.load(channels_last=True)}.items():
        erase.erase(model, "death", tmp_path / name, method="u", eta=1.0, recipe=recipe)
        moved.append(torch.cat([(p - before[key]).flatten().sign() for key, p in model.unet.state_dict().items()]))
    assert (moved[0] == moved[1]).float().mean() > 0.99
