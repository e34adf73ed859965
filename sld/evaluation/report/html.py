"""HTML that is safe by construction: all text is escaped, unless it was made here."""

from __future__ import annotations

from html import escape

_VOID = {"img", "meta"}


class Html(str):
    """Markup, which goes into a page as it is."""


def element(name: str, *children: str, **attributes: str | bool) -> Html:
    """An element of HTML.

    Args:
        name: of the element.
        children: `Html` goes in as it is, other text is escaped.
        attributes: their names with "_" for "-", and with one more at the end where Python has the word for itself.
            True is an attribute without a value, False is none.
    """
    tag = [name]
    for key, value in attributes.items():
        if value is not False:
            label = key.rstrip("_").replace("_", "-")
            tag.append(label if value is True else f'{label}="{escape(str(value))}"')
    opened = f"<{' '.join(tag)}>"
    return Html(opened if name in _VOID else f"{opened}{join(*children)}</{name}>")


def join(*parts: str) -> Html:
    """Parts one after the other; `Html` goes in as it is, other text is escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))
