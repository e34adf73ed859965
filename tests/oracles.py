"""The equations again, number by number in plain Python, as an oracle for the tensor code. Slow on purpose."""

from __future__ import annotations

from collections.abc import Sequence

from sld.guidance import SLDConfig


def sld_element(e0: float, ep: float, es: float, nu: float, i: int, config: SLDConfig) -> tuple[float, float]:
    """One element of one SLD step (arXiv 2211.05105, Eq. 3 and 5 to 8, read as its authors' code reads them).

    Args:
        e0, ep, es: unconditional, text and safety predictions.
        nu: the element's momentum.
        i: index of the network evaluation.

    Returns:
        The guided prediction and the next momentum.
    """
    gap = ep - es
    mu = min(1.0, abs(config.safety_scale * gap)) if gap < config.threshold else 0.0
    gamma = mu * (es - e0) + config.momentum_scale * nu
    next_nu = config.momentum_beta * nu + (1 - config.momentum_beta) * gamma
    applied = gamma if i >= config.warmup_steps else 0.0
    return e0 + config.guidance_scale * (ep - e0 - applied), next_nu


def sld_run(rows: Sequence[Sequence[Sequence[float]]], config: SLDConfig) -> list[list[float]]:
    """Guided predictions of a whole run, from flat lists of (uncond, text, safety) per evaluation."""
    nu = [0.0] * len(rows[0][0])
    guided = []
    for i, elements in enumerate(rows):
        results = [sld_element(*e, n, i, config) for *e, n in zip(*elements, nu, strict=True)]
        guided.append([eps_hat for eps_hat, _ in results])
        nu = [n for _, n in results]
    return guided
