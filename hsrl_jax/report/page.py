"""Parts of a self-contained HTML page, in the look of all reports."""

import base64
import html
from collections.abc import Iterable, Sequence

_CSS = """
:root { color-scheme: light dark; --text: #1d1f21; --page: #fdfdfc;
  --soft: #62666b; --line: #d9dadb; --panel: #f3f4f4; --accent: #00598c;
  --liked: #dcecf7; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e3e4e5; --page: #17191b; --soft: #a3a8ad; --line: #3a3e42;
    --panel: #212427; --accent: #7cc0ea; --liked: #173f58; }
  img { filter: brightness(.9); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem;
  color: var(--text); background: var(--page);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
p, dl { max-width: 46rem; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace;
  font-size: .9em; white-space: nowrap; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  font-size: .92rem; margin: .8rem 0; }
th, td { padding: .35rem .9rem .35rem 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
.number { text-align: right; white-space: nowrap; padding-left: .9rem; }
.agent td { font-weight: 700; background: var(--liked); }
.agent td:first-child { box-shadow: inset 4px 0 var(--accent); }
td:first-child, th:first-child { padding-left: .7rem; }
.ci { color: var(--soft); font-weight: 400; font-size: .85em; }
figure { margin: 1rem 0; }
figure img { display: block; width: 100%; min-width: 40rem; height: auto;
  padding: .5rem; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; }
figcaption { margin-top: .4rem; max-width: 46rem; }
.session { background: var(--panel); border-radius: 8px; margin: 1rem 0;
  padding: .1rem 1rem 1rem; }
.step { margin: .8rem 0 0; }
ul.films { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem;
  margin: .25rem 0; padding: 0; font-size: .86rem; line-height: 1.35; }
ul.films li { border: 1px solid var(--line); border-radius: 5px;
  padding: .12rem .5rem; color: var(--soft); overflow-wrap: anywhere; }
ul.films li.liked { background: var(--liked); border-color: var(--accent);
  color: var(--text); font-weight: 600; }
summary { cursor: pointer; color: var(--accent); margin-top: .6rem;
  font-size: .92rem; }
"""


def document(title: str, parts: Iterable[str]) -> str:
  """A whole page; `title` is plain text, `parts` are HTML."""
  return "\n".join(
    [
      "<!DOCTYPE html>",
      '<html lang="en"><head><meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f"<title>{text(title)}</title><style>{_CSS}</style></head><body><main>",
      f"<h1>{text(title)}</h1>",
      *parts,
      "</main></body></html>\n",
    ]
  )


def figure(picture: bytes, alt: str, caption: str) -> str:
  """A PNG inside the page, with a caption; both texts are HTML."""
  data = base64.b64encode(picture).decode()
  return (
    '<figure><div class="scroll">'
    f'<img alt="{alt}" src="data:image/png;base64,{data}"></div>'
    f"<figcaption>{caption}</figcaption></figure>"
  )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A table of numbers; its first column is text. All cells are HTML."""

  def line(tag, cells):
    first, *numbers = cells
    numbers = "".join(f'<{tag} class="number">{x}</{tag}>' for x in numbers)
    return f"<tr><{tag}>{first}</{tag}>{numbers}</tr>"

  body = "".join(line("td", row) for row in rows)
  return (
    f'<div class="scroll"><table><thead>{line("th", head)}</thead>'
    f"<tbody>{body}</tbody></table></div>"
  )


def titles(names: Sequence[str], liked: Sequence[bool] | None = None) -> str:
  """Titles of items side by side, in plain text; liked ones are marked."""
  marks = [False] * len(names) if liked is None else liked
  shown = "".join(
    f'<li class="liked"><span role="img" aria-label="liked">✓</span> '
    f"{text(name)}</li>"
    if mark
    else f"<li>{text(name)}</li>"
    for name, mark in zip(names, marks, strict=True)
  )
  return f'<ul class="films">{shown}</ul>'


def fold(summary: str, body: str) -> str:
  """Shows `summary`; `body` (HTML) on a click."""
  return f"<details><summary>{summary}</summary>{body}</details>"


def text(value: object) -> str:
  """Plain text as HTML."""
  return html.escape(str(value))
