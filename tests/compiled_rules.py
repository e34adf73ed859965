"""Every rule that is compiled in tests: in two settings, with what it compiles to on a CPU and on a GPU.

What works element by element is one kernel. A reduction (a dot product, a norm, a deviation) ends one on a GPU, so
rules that look at a whole image launch more, the more the longer they chain reductions; on a CPU all loops share a
function. Sums run in another order there than in torch's own, hence a tolerance. SEGA's sorts are torch's own calls
in between, and not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from conftest import EXACT, NETWORK

from sld.guidance import (
    APG,
    MAX,
    SEGA,
    WEAK,
    ClassifierFreeGuidance,
    Composed,
    DynamicNegativeGuidance,
    Guidance,
    Negative,
    PerpNeg,
    Rescale,
    SafeLatentConcepts,
    Sparse,
)

SHAPE = (4, 4, 64, 64)
"""Four images' latents at 512 x 512, for which GPU kernels are counted."""


@dataclass(frozen=True)
class Case:
    """A rule compiled.

    Attributes:
        one, other: the rule in two settings that differ in every kind of number.
        kernels: C++ functions that a call of it runs on a CPU.
        cuda: Triton kernels and their launches on a GPU, at SHAPE.
        close: how close it comes to eager.
    """

    one: Guidance
    other: Guidance
    kernels: int
    cuda: tuple[int, int]
    close: dict[str, Any]


def concepts(combination: str, cuda: tuple[int, int], close: dict[str, Any]) -> Case:
    one, other = (SafeLatentConcepts.alike(["a", "b", "c"], config, combination) for config in (WEAK, MAX))
    return Case(one, replace(other, guidance_scale=4.0), 1, cuda, close)


CFG = ClassifierFreeGuidance(7.5)
CASES = {
    "sum": concepts("sum", (1, 1), EXACT),
    "maximum": concepts("maximum", (1, 1), EXACT),
    "select": concepts("select", (4, 11), EXACT),
    "orthogonalised": concepts("orthogonalised", (4, 15), NETWORK),
    "sega": Case(
        SEGA.safety("medium", ["a", "b"]), SEGA.safety("max", ["a", "b"], guidance_scale=4.0), 2, (4, 4), EXACT
    ),
    "perp-neg": Case(
        PerpNeg((Negative(text="a"), Negative(text="b"))),
        PerpNeg((Negative(text="a", weight=0.2), Negative(text="b", weight=2.0)), guidance_scale=4.0),
        1,
        (3, 6),
        NETWORK,
    ),
    "dynamic": Case(
        DynamicNegativeGuidance("a"), DynamicNegativeGuidance("a", negative_scale=3.0, prior=0.5), 1, (1, 1), EXACT
    ),
    "rescale": Case(Composed(CFG, (Rescale(0.7),)), Composed(CFG, (Rescale(0.2),)), 1, (3, 4), NETWORK),
    "apg": Case(Composed(CFG, (APG(),)), Composed(CFG, (APG(0.5, 9.0, 0.2),)), 1, (4, 6), NETWORK),
    "sparse": Case(
        Sparse(SafeLatentConcepts.alike(["a", "b"], WEAK)),
        Sparse(SafeLatentConcepts.alike(["a", "b"], MAX), 3),
        1,
        (1, 1),
        EXACT,
    ),
    "interval": Case(Composed(CFG), Composed(CFG, begin=0.2, end=0.7), 1, (1, 1), EXACT),
}
