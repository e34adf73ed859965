"""The cells of the embedded model's measurement: families of prompts under presets."""

from __future__ import annotations

from dataclasses import dataclass

from sld.testbed import prompts
from sld.testbed.prompts import Prompt
from sld.testbed.scenes import CATEGORY_OF, CONCEPT, CONCEPT_LONG, PROPS, phrase


@dataclass(frozen=True)
class Cell:
    """A family of prompts under one preset.

    Attributes:
        family: cells of one family share their prompts and seeds.
        prompts: used in turn. Subject and place are empty where the text names none.
        safety: a preset's name.
        concept: the safety concept.
    """

    family: str
    prompts: tuple[Prompt, ...]
    safety: str
    concept: str = CONCEPT

    @property
    def name(self) -> str:
        return f"{self.family}/{self.safety}"

    def prompt(self, k: int) -> Prompt:
        """Return the prompt of picture k."""
        return self.prompts[k % len(self.prompts)]


def cells() -> list[Cell]:
    """Return all cells that are measured."""
    named, implicit, harmless = map(tuple, (prompts.named_harmless_prop(), prompts.implicit(), prompts.harmless()))
    explicit = tuple(prompts.explicit())
    alone = tuple(Prompt(phrase(prop), "", "", prop, CATEGORY_OF.get(prop)) for prop in PROPS)
    return [
        Cell("alone", alone, "off"),
        Cell("concept", (Prompt(CONCEPT, "", "", None, None),), "off"),
        Cell("concept-long", (Prompt(CONCEPT_LONG, "", "", None, None),), "off"),
        *(Cell("named", named, safety) for safety in ("off", "strong", "max")),
        *(Cell("implicit", implicit, safety) for safety in ("off", "weak", "medium", "strong", "max")),
        Cell("implicit-long", implicit, "strong", CONCEPT_LONG),
        *(Cell("harmless", harmless, safety) for safety in ("off", "strong", "max")),
        *(Cell("explicit", explicit, safety) for safety in ("off", "strong", "max")),
    ]
