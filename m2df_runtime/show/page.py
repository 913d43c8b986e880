"""The shell of a page that explains: one file with its style in it, without scripts, for screens, phones and paper.

Everything that comes from outside goes through `text`; a policy in the page forbids whatever it does not need itself.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

from m2df_runtime.errors import printable

MAX_BYTES = 2_000_000  # of a whole page

_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--card:#f6f7f9;--ink:#181c24;--faint:#5d6675;--line:#d9dde4;--accent:#1f5fc4;
--aligned:#2b6cd4;--means:#0f8f83;--looks:#8a4fc7;--text:#c06a00;--undecided:#7d8796;--bad:#b93a2a;--heat:#3f4754;
--second:#c2570c}
@media(prefers-color-scheme:dark){:root{--bg:#12151a;--card:#1b2027;--ink:#e9ecf1;--faint:#a3adbb;--line:#353c47;
--accent:#7db0ff;--aligned:#6ba2f5;--means:#3cc2b4;--looks:#bb8cf0;--text:#f0a347;--undecided:#8d98a8;--bad:#ff8d7c;
--heat:#c9d1dd;--second:#ff9d57}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,Arial,
"DejaVu Sans",sans-serif}
main{max-width:960px;margin:0 auto;padding:24px 20px 48px}
h1{font-size:2rem;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:36px 0 6px;overflow-wrap:anywhere}
h3{font-size:1rem;margin:22px 0 4px;overflow-wrap:anywhere}
p{margin:6px 0 10px;max-width:75ch;overflow-wrap:anywhere}
.faint,figcaption,.legend,small{color:var(--faint)}
figcaption,.legend,small{font-size:.875rem}
.lead{font-size:1.125rem}
.bad{color:var(--bad)}
.note{background:var(--card);border-left:4px solid var(--text);padding:8px 14px;margin:14px 0}
figure{margin:10px 0 18px}
svg{display:block;width:100%;overflow:visible}
svg text{fill:var(--ink);font:13px system-ui,Arial,"DejaVu Sans",sans-serif}
.defs{position:absolute;width:0;height:0}
svg .over{paint-order:stroke;stroke:var(--bg);stroke-width:5px;stroke-linejoin:round}
.wide{overflow-x:auto}
.row{display:grid;grid-template-columns:minmax(90px,24%) 1fr 5.5em;gap:10px;align-items:center;margin:5px 0}
.row>span{overflow-wrap:anywhere}
.row.sum svg{height:1px}.row .num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.bar{height:22px}.tall{height:58px}
.track{fill:var(--card)}
.aligned{fill:var(--aligned)}.means{fill:var(--means)}.looks{fill:var(--looks)}.text{fill:var(--text)}
.undecided{fill:var(--undecided)}.other{fill:var(--undecided)}.accent{fill:var(--accent)}.rejected{fill:var(--bad)}
.later{fill-opacity:.62}
.mark{stroke:var(--ink);stroke-width:3;stroke-dasharray:5 3}.inked{fill:var(--ink)}
.level{stroke:var(--faint);stroke-width:1;stroke-dasharray:4 4}
.axis{stroke:var(--line);stroke-width:1}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px;margin:8px 0;padding:0;list-style:none}
.legend svg{display:inline-block;width:12px;height:12px;margin-right:6px;vertical-align:-1px}
.grids{display:flex;flex-wrap:wrap;gap:18px}
.grids figure{flex:1 1 150px;max-width:240px;margin:0}
.cost{fill:var(--heat)}
.soft{fill:var(--accent)}
.hard{fill:none;stroke:var(--second);stroke-width:2;stroke-linejoin:round;vector-effect:non-scaling-stroke}
.back{stroke-dasharray:5 4}
.frame{fill:none;stroke:var(--line);vector-effect:non-scaling-stroke}
.cut{stroke:var(--bg);stroke-width:3}
.missing{fill:var(--card);stroke:var(--line)}
.tie{fill:none;stroke:var(--accent)}
.tie.hard{stroke:var(--second);stroke-width:1.6;stroke-opacity:.95}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:3px 14px 3px 0;text-align:right;border-bottom:1px solid var(--line);vertical-align:top}
th:first-child,td:first-child{text-align:left}
tr.sum td,tr.sum th{font-weight:600}
dl{margin:6px 0}dt{font-weight:600;margin-top:8px}dd{margin:0;max-width:75ch}
code{font-size:.9em}
@media(max-width:600px){main{padding:16px 12px 32px}h1{font-size:1.6rem}
.row{grid-template-columns:1fr 5.5em}.row>span:first-child{grid-column:1/-1;margin-bottom:-6px}
.strip svg text{font-size:20px}.row.sum{grid-template-columns:1fr 5.5em}.row.sum>span{grid-column:auto}
.row.sum svg{display:none}}
@media print{:root{--bg:#fff;--card:#f1f2f4;--ink:#000;--faint:#444;--line:#bbb;--accent:#1f5fc4;--aligned:#2b6cd4;
--means:#0f8f83;--looks:#8a4fc7;--text:#c06a00;--undecided:#7d8796;--bad:#b93a2a;--heat:#3f4754;--second:#c2570c}
body{font-size:11pt}main{max-width:none;padding:0}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
figure,.row,.note,tr{break-inside:avoid}h2,h3{break-after:avoid}}
"""


def text(value: str) -> str:
    """Any text as HTML, in attributes too; control characters stand as escapes."""
    return html.escape(printable(value))


def number(value: float, digits: int = 2) -> str:
    """A number as it stands on the page."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """A number with its sign."""
    return ("+" if value >= 0 else "") + number(value)


def whole_page(title: str, parts: Iterable[str]) -> str:
    """The page of these parts.

    Args:
        title: As text, not yet HTML.
        parts: As HTML.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>",
            *parts,
            "</main>\n</body>\n</html>\n",
        )
    )


def data_uri(data: bytes, kind: str) -> str:
    """Bytes inside the page."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def row(name: str, drawn: str, value: str) -> str:
    """A bar with its name (HTML) and its value."""
    return f'<div class="row"><span>{name}</span>{drawn}<span class="num">{value}</span></div>'


def sum_row(name: str, value: str) -> str:
    """What the rows above come to."""
    return f'<div class="row sum"><b>{name}</b><svg></svg><b class="num">{value}</b></div>'


def bar(label: str, shapes: Iterable[str], kind: str = "bar") -> str:
    """A bar of shapes whose x is in percent; `label` is what it says, as text."""
    return f'<svg class="{kind}" role="img" aria-label="{text(label)}">{"".join(shapes)}</svg>'


def block(kind: str, start: float, end: float, top: float = 2, height: float = 18) -> str:
    """A rectangle of a bar from `start` to `end` percent."""
    left, width = min(start, end), abs(end - start)
    return f'<rect class="{kind}" x="{left:.2f}%" width="{width:.2f}%" y="{top:g}" height="{height:g}"/>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Kinds of blocks and what they are, as HTML."""
    every = (
        f'<li><svg aria-hidden="true"><rect class="{kind}" width="12" height="12"/></svg>{name}</li>'
        for kind, name in entries
    )
    return f'<ul class="legend">{"".join(every)}</ul>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], sums: int = 0) -> str:
    """A table of HTML cells; the last `sums` rows stand out."""
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    for place, cells in enumerate(rows):
        kind = ' class="sum"' if place >= len(rows) - sums else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'
