"""`sld prompts`: a description of a prompt set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sld.cli.options import SelectionOptions
from sld.cli.parser import Command, argument, group, option
from sld.cli.runs import read_selected
from sld.text.vocabulary import read_vocabulary


@dataclass(frozen=True)
class PromptsOptions:
    """Options of `sld prompts`."""

    source: str = argument("mini-i2p, mini-harmless, mini-bias, i2p, or a file")
    tokenizer: Path | None = option(None, "folder, to count prompts over 77 tokens (embedded sets: their own)")
    selection: SelectionOptions = group(SelectionOptions(), "which rows")


def describe(options: PromptsOptions) -> None:
    """Print a description of a prompt set."""
    vocabulary = None if options.tokenizer is None else read_vocabulary(options.tokenizer)
    prompts = read_selected(options.source, options.selection)
    from sld.config import MINI, SD15
    from sld.embedded import embedded_checkpoint
    from sld.evaluation.prompt_report import describe
    from sld.models.text import Tokenizer

    if vocabulary is not None:
        tokenizer = Tokenizer(vocabulary, SD15.texts[0])
    elif options.source.startswith("mini-"):
        tokenizer = Tokenizer.load(embedded_checkpoint().with_name("tokenizer"), MINI.texts[0])
    else:
        tokenizer = None
    print(describe(prompts, tokenizer))


PROMPTS = Command("prompts", PromptsOptions, describe, "describe a prompt set", "Describe a prompt set.")
