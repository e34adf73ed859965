"""`sld prompts`: a description of a prompt set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sld.choices import Place
from sld.cli.options import SelectionOptions
from sld.cli.parser import Command, argument, group, option
from sld.cli.runs import read_selected
from sld.embedded import embedded_checkpoint
from sld.published import MINI, SD15
from sld.text.vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from sld.models.text import Tokenizer


@dataclass(frozen=True)
class PromptsOptions:
    """Options of `sld prompts`."""

    source: Place = argument("mini-i2p, mini-harmless, mini-bias, i2p, or a file")
    tokenizer: Path | None = option(None, "folder, to count prompts over 77 tokens (embedded sets: their own)")
    selection: SelectionOptions = group(SelectionOptions(), "which rows")


def describe(options: PromptsOptions) -> None:
    """Print a description of a prompt set."""
    vocabulary = None if options.tokenizer is None else read_vocabulary(options.tokenizer)
    prompts = read_selected(options.source, options.selection)
    from sld.evaluation.prompt_report import describe

    print(describe(prompts, _tokenizer(options.source, vocabulary)))


def _tokenizer(source: str, vocabulary: Vocabulary | None) -> Tokenizer | None:
    """Return the tokenizer that counts tokens; None, and nothing slow is imported, if there is none."""
    if vocabulary is None and not source.startswith("mini-"):
        return None
    from sld.models.text import Tokenizer

    if vocabulary is not None:
        return Tokenizer(vocabulary, SD15.texts[0])
    return Tokenizer.load(embedded_checkpoint().with_name("tokenizer"), MINI.texts[0])


PROMPTS = Command("prompts", PromptsOptions, describe, "describe a prompt set", "Describe a prompt set.")
