"""One HTML page that carries all it shows: no script, nothing to fetch, legible on a phone and
printed.

Pieces are `Html`; what a person or a file says is text, and is escaped here, once, wherever it
comes from.
"""

import struct
from base64 import b64encode
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from typing import NewType

Html = NewType("Html", str)

NOTHING = "-"
PIXELS_OF_A_PICTURE = 1.3  # to one of the page: sharp, and letters as large as the text's

# Even a piece that were wrong could load nothing: the browser is told to refuse.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 4rem; max-width: 62rem; background: #fff; color: #1a1a1a;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
header { border-bottom: 3px solid #0072b2; margin-bottom: 1.5rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: .8rem 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-bottom: .2rem;
  border-bottom: 1px solid #d0d0d0; }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
p.lead { font-size: 1.1rem; }
p.small, .notes { font-size: .88rem; color: #4a4a4a; }
nav a { margin-right: 1rem; white-space: nowrap; }
a { color: #005a8e; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e2e2e2; }
th { border-bottom: 2px solid #8c8c8c; vertical-align: bottom; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.marked td { background: #e8f2f9; font-weight: 600; }
tr.marked td:first-child { box-shadow: inset 4px 0 #0072b2; padding-left: .7rem; }
td.words { min-width: 15rem; overflow-wrap: anywhere; }
.bar { display: inline-block; width: 7rem; height: .8rem; margin-right: .5rem; background: #e6e6e6;
  vertical-align: -1px; }
.bar i { display: block; height: 100%; background: #0072b2; }
figure { margin: 1.6rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { font-size: .9rem; max-width: 46rem; margin-bottom: .4rem; }
details { margin: .8rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { background: #f5f5f5; padding: .7rem .9rem; overflow-x: auto; font-size: .85rem;
  line-height: 1.4; }
code { font-family: ui-monospace, "Liberation Mono", monospace; }
@media (max-width: 40rem) { body { padding: .6rem .8rem 3rem; } h1 { font-size: 1.4rem; }
  figure img { max-width: 34rem; } }
@media print {
  body { max-width: none; font-size: 10.5pt; padding: 0; }
  nav, a[download] { display: none; }
  h2, caption, figcaption { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  .wide, pre { overflow: visible; }
  pre { white-space: pre-wrap; }
  details pre { columns: 2; }
  table { font-size: 8.5pt; }
  td.words { min-width: 0; }
  .bar, .bar i, tr.marked td { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  details::details-content { content-visibility: visible; }
}
"""


@dataclass(frozen=True)
class Bar:
    """A cell of a table: a share in [0, 1] as a bar, and as words."""

    share: float
    words: str


def page(title: str, lead: Sequence[Html], sections: Sequence[tuple[str, Sequence[Html]]]) -> str:
    """The whole file. lead: what stands above all; sections: (heading, pieces); empty ones go."""
    kept = [(heading, pieces) for heading, pieces in sections if pieces]
    links = [f'<a href="#part{n}">{escape(heading)}</a>' for n, (heading, _) in enumerate(kept, 1)]
    body = "\n".join(f'<section id="part{n}">\n<h2>{escape(heading)}</h2>\n{_lines(pieces)}\n'
                     "</section>" for n, (heading, pieces) in enumerate(kept, 1))
    nav = f"<nav>{' '.join(links)}</nav>" if len(links) > 1 else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{_lines(lead)}
{nav}
</header>
<main>
{body}
</main>
</body>
</html>
"""


def text(words: str, kind: str = "") -> Html:
    """A paragraph. kind: 'lead' is larger, 'small' smaller."""
    return Html(f"<p{_class(kind)}>{escape(words)}</p>" if words else "")


def points(sentences: Sequence[str], kind: str = "") -> Html:
    """A list; nothing of none."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return Html(f"<ul{_class(kind)}>{items}</ul>" if items else "")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "",
          notes: Sequence[str] = (), marked: Collection[int] = ()) -> Html:
    """Cells are texts, numbers, None or a `Bar`. marked: numbers of rows that stand out."""
    sides = [_side([row[place] for row in rows]) for place in range(len(columns))]
    head = "".join(f"<th{_class(side)}>{escape(name)}</th>" for name, side in zip(columns, sides))
    body = "\n".join(f"<tr{_class('marked' if n in marked else '')}>"
                     + "".join(f"<td{_class(side)}>{_cell(value)}</td>"
                               for value, side in zip(row, sides)) + "</tr>"
                     for n, row in enumerate(rows))
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    return Html(f'<div class="wide"><table>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
                f"{body}\n</tbody></table></div>{points(notes, 'notes')}")


def picture(png: bytes, caption: str, *, name: str, csv: bytes = b"") -> Html:
    """A PNG as large as it was drawn, or as wide as the page; with its numbers to save, if given.

    name: of the file of numbers.
    """
    width, height = (round(n / PIXELS_OF_A_PICTURE) for n in struct.unpack(">II", png[16:24]))
    numbers = f" {_download(f'{name}.csv', 'text/csv', csv, 'Its numbers as CSV.')}" if csv else ""
    return Html(f'<figure><figcaption>{escape(caption)}{numbers}</figcaption><div class="wide">'
                f'<img src="{_data("image/png", png)}" alt="{escape(caption)}" width="{width}" '
                f'height="{height}"></div></figure>')


def code(words: str) -> Html:
    """Commands, or a file, as they are typed."""
    return Html(f"<pre><code>{escape(words)}</code></pre>")


def file(name: str, words: str) -> Html:
    """A text file, to read and to save under its name."""
    return Html(f"<p>{_download(name, 'text/plain', words.encode(), f'Save {name}')}</p>"
                f"{code(words)}")


def folded(summary: str, *pieces: Html) -> Html:
    """What is opened by a click; on paper it stands open."""
    return Html(f"<details><summary>{escape(summary)}</summary>\n{_lines(pieces)}\n</details>")


def _lines(pieces: Sequence[Html]) -> str:
    return "\n".join(piece for piece in pieces if piece)


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _download(name: str, kind: str, content: bytes, words: str) -> str:
    return f'<a download="{escape(name)}" href="{_data(kind, content)}">{escape(words)}</a>'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode('ascii')}"


def _cell(value: object) -> str:
    if isinstance(value, Bar):
        width = 100 * min(1.0, max(0.0, value.share))
        return (f'<span class="bar"><i style="width:{width:.1f}%"></i></span>'
                f"{escape(value.words)}")
    return escape(NOTHING if value is None else str(value))


def _side(cells: Sequence[object]) -> str:
    """Numbers stand right, also where there is none; long texts get room; bars stand left."""
    shown = [NOTHING if c is None else str(c) for c in cells]
    said = [c for c in shown if c not in ("", NOTHING)]
    if any(isinstance(c, Bar) for c in cells):
        return ""
    if (said or NOTHING in shown) and all(c.lstrip("+-")[:1].isdigit() for c in said):
        return "number"
    return "words" if max(map(len, said), default=0) > 30 else ""
