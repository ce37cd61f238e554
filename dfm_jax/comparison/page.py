"""A comparison as one page of HTML that holds everything it shows and can be read on a phone."""

from collections.abc import Sequence
from html import escape

from dfm_jax.comparison import pictures, report
from dfm_jax.comparison.report import Found

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 46rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
h1, p { overflow-wrap: anywhere; }
.warning { border-left: 4px solid #D55E00; padding-left: .7rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #8884; padding: .2rem .6rem; }
th, td { text-align: right; white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
svg { display: block; height: auto; max-width: 34rem; width: 100%; }
svg text { fill: currentColor; font: 11px system-ui, sans-serif; }
svg .name { font-weight: bold; }
svg .grid { stroke: #8884; } svg .axis { stroke: currentColor; } svg .reach { stroke-width: 2; }
svg .band { fill: #8884; }
.key { list-style: none; padding: 0; } .key li { display: inline-block; margin-right: 1rem; }
.key i { display: inline-block; height: .7em; margin-right: .3em; width: .7em; }
.text { font: .85rem/1.7 ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
"""


def comparison_page(found: Found) -> str:
    """The page: the verdict, four pictures, and all tables."""
    unit = f"nats per {found['unit']}"
    said, speaks, *warnings = report.verdict_sentences(found)
    lost = report.account_sentence(found, report.ensemble_of(found))
    dots = (
        f"A dot is the difference to the dense model in {unit}, and a line its interval over "
        "documents. Near 0 the scale is linear, and beyond the margin logarithmic."
    )
    parts = [
        f"<h1>{escape(report.heading(found))}</h1>",
        f"<p><strong>{escape(said)}</strong> {escape(speaks)}</p>",
        *(f'<p class="warning">{escape(words)}</p>' for words in warnings),
        f"<h2>Each gate</h2>\n{pictures.gates_picture(found)}",
        f"<p>{escape(dots)}</p>",
        _table(report.gate_table(found)),
        f"<h2>Where the difference comes from</h2>\n{pictures.account_picture(found)}",
        f"<p>{escape(lost)}, in {unit}; {report.residual_text(found)}.</p>",
        _table(report.account_table(found)),
    ]
    for kind in report.kinds_of(found):
        parts += [f"<h2>By {escape(kind)}</h2>", _table(report.group_table(found, kind))]
    if losses := pictures.losses_picture(found):
        members = [curve["name"] for curve in found["curves"]]
        parts += [
            f"<h2>Along training</h2>\n{losses}",
            _key(members[1:], first=members[0]),
            "<p>Each member has its own rows, an expert those of its part.</p>",
        ]
    parts += ["<h2>What the training cost</h2>", _table(report.training_table(found))]
    if found["texts"]:
        parts += ["<h2>The Bayes gate along example texts</h2>", _key(found["experts"])]
        parts += [_example(text, found["experts"]) for text in found["texts"]]
    numbers = ", ".join(f"{name} {value}" for name, value in found["options"].items())
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    parts.append(f"<p><small>{escape(numbers)}; {escape(versions)}</small></p>")
    body = "\n".join(parts)
    title = escape(f"Comparison of {found['run']}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    heading, *body = rows
    lines = [line(heading, "th"), *(line(row, "td") for row in body)]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _key(experts: Sequence[str], first: str | None = None) -> str:
    """The colors of the experts, and of what stands before them."""
    colors = [(name, pictures.color_of(k)) for k, name in enumerate(experts)]
    colors = ([] if first is None else [(first, "currentColor")]) + colors
    items = [f'<li><i style="background:{c}"></i>{escape(name)}</li>' for name, c in colors]
    return f'<ul class="key">{"".join(items)}</ul>'


def _example(text: Found, experts: Sequence[str]) -> str:
    """A text whose letters stand on the color of the expert that weighs most, as strong as it."""
    spans = []
    for piece, weights in zip(text["pieces"], text["weights"], strict=True):
        best = max(range(len(weights)), key=weights.__getitem__)
        strength = round(255 * 0.6 * weights[best])
        color, title = pictures.color_of(best), f"{experts[best]} {weights[best]:.2f}"
        shown = escape("".join(c if c.isprintable() or c in "\n\t" else "·" for c in piece))
        spans.append(
            f'<span style="background:{color}{strength:02x}" title="{title}">{shown}</span>'
        )
    nats = text["nats"]
    told = f"the ensemble {nats['ensemble']:.1f} nats, the dense model {nats['dense']:.1f} nats"
    return (
        f"<h3>A text of {escape(text['expert'])}: {told}</h3>\n"
        f"{pictures.gate_picture(text['weights'])}\n"
        f'<p class="text">{"".join(spans)}</p>'
    )
