"""The output of `sld prompts`: a description of a prompt set."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sld.evaluation.metrics import DRAWS, expected_maximum
from sld.evaluation.prompts import PromptSet, Row, odd_rows

if TYPE_CHECKING:
    from sld.models.text import Tokenizer

_SHARE = "inappropriate_percentage"
_LISTED = 10  # largest number of ids or values in a line


def describe(prompts: PromptSet, tokenizer: Tokenizer | None = None) -> str:
    """Describe a set: rows, categories, sizes, seeds, odd rows and, if its file has them, the published shares.

    The shares are those of the column "inappropriate_percentage". P is their mean over the rows that have a category,
    in percent. The expected maximum is that of 25 draws, with its standard deviation: over rows, and over distinct
    prompts, each with the mean share of its rows.

    Args:
        prompts: the set.
        tokenizer: the text encoder's, to count prompts that are too long for it; None leaves the count out.

    Raises:
        ValueError: a share is not in [0, 100].
    """
    blocks = [_facts(prompts, tokenizer), _odd_rows(prompts.rows)]
    if prompts.categories:
        blocks.append(_label_counts(prompts))
    shares = {row.id: _share(row) for row in prompts.rows if row.columns.get(_SHARE)}
    if shares:
        blocks.append(_published(prompts, shares))
    return "\n\n".join(blocks)


def _facts(prompts: PromptSet, tokenizer: Tokenizer | None) -> str:
    rows = prompts.rows
    distinct = len({row.prompt for row in rows})
    scales = [f"{row.guidance_scale:g}" for row in rows if row.guidance_scale is not None]
    sizes = [f"{row.width}x{row.height}" for row in rows if row.width and row.height]
    facts = {
        "set": prompts.name,
        "sha256": f"{prompts.sha256} as read, {prompts.rows_sha256} of the rows",
        "rows": f"{len(rows)}, {distinct} distinct prompts, {len(rows) - distinct} repeat an earlier one",
        "seeds": _seeds([row.seed for row in rows if row.seed is not None]),
        "guidance": _counts(scales),
        "sizes": _counts(sizes),
    }
    if tokenizer is None:
        facts["tokens"] = "not counted, which takes the text encoder's tokenizer"
    else:
        long = [row.id for row in rows if tokenizer.cut(row.prompt)]
        facts["tokens"] = f"over {tokenizer.config.tokens} in {_listing(long)}"
    return _aligned(list(facts.items()), "<<")


def _seeds(seeds: Sequence[int]) -> str:
    if not seeds:
        return "none"
    outside = sum(seed >= 2**31 for seed in seeds)
    return f"{min(seeds)} … {max(seeds)}, {len(set(seeds))} distinct, {outside} outside int32"


def _odd_rows(rows: Iterable[Row]) -> str:
    return _aligned([("odd rows", "rows"), *((name, _listing(ids)) for name, ids in odd_rows(rows).items())], "<<")


def _label_counts(prompts: PromptSet) -> str:
    every = Counter(category for row in prompts.rows for category in row.categories)
    single = Counter(row.categories[0] for row in prompts.rows if len(row.categories) == 1)
    table = [("category", "any label", "single label")]
    table += [(category, str(every[category]), str(single[category])) for category in prompts.categories]
    table += [("sum", str(every.total()), str(single.total()))]
    bare = sum(not row.categories for row in prompts.rows)
    return _aligned([*table, ("without label", str(bare), "")], "<>>")


def _published(prompts: PromptSet, shares: dict[int, float]) -> str:
    """Return the lines on P and expected maximum; `shares` are by row id, in [0, 1]."""
    judged = [row for row in prompts.rows if row.id in shares]
    table = [(_SHARE, "rows", "P %", "expected maximum over rows", "grouped by prompt")]
    for category in (*prompts.categories, None):
        rows = [row for row in judged if category is None or category in row.categories]
        by_prompt = defaultdict(list)
        for row in rows:
            by_prompt[row.prompt].append(shares[row.id])
        over_rows = [shares[row.id] for row in rows]
        grouped = [float(np.mean(group)) for group in by_prompt.values()]
        mean = f"{100 * np.mean(over_rows):.4f}" if rows else "-"
        table.append((category or "all", str(len(rows)), mean, _maximum(over_rows), _maximum(grouped)))
    return _aligned(table, "<>>>>")


def _maximum(shares: Sequence[float]) -> str:
    if len(shares) < DRAWS:
        return "-"
    mean, deviation = expected_maximum(np.array(shares), DRAWS)
    return f"{100 * mean:.4f} ± {100 * deviation:.4f}"


def _share(row: Row) -> float:
    text = row.columns[_SHARE]
    try:
        percent = float(text)
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:
        raise ValueError(f"row {row.id}, column {_SHARE!r}: {text!r} is no percentage")
    return percent / 100


def _counts(values: Sequence[Any]) -> str:
    """Return values with their counts, the most frequent first."""
    if not values:
        return "none"
    common = Counter(values).most_common()
    listed = ", ".join(f"{value} ({count})" for value, count in common[:_LISTED])
    return listed + (f" … {len(common)} different ones" if len(common) > _LISTED else "")


def _listing(ids: Sequence[int]) -> str:
    """Return the number of rows and their ids as text."""
    if not ids:
        return "0"
    return f"{len(ids)}: {', '.join(map(str, ids[:_LISTED]))}{' …' if len(ids) > _LISTED else ''}"


def _aligned(table: Sequence[Sequence[str]], alignment: str) -> str:
    """Return a table as lines with aligned columns; `alignment` has "<" or ">" for each column."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(line, alignment, widths, strict=True)) for line in table)
    return "\n".join(line.rstrip() for line in lines)
