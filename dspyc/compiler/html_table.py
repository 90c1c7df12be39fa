"""Tables as a notebook shows them."""

import html
from collections.abc import Sequence


def html_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    bold: int | None = None,
    title: str = "",
    caption: str = "",
) -> str:
    """HTML of a table, with row `bold` in bold, below its `title` and above its `caption`; all text is escaped."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(_row(row, "b" if place == bold else "span") for place, row in enumerate(rows))
    above = f"<p><b>{html.escape(title)}</b></p>" if title else ""
    below = f"<p>{html.escape(caption)}</p>" if caption else ""
    return f"{above}<table><tr>{head}</tr>{body}</table>{below}"


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>{}</tr>".format("".join(f"<td><{tag}>{html.escape(cell)}</{tag}></td>" for cell in cells))
