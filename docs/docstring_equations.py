r"""Docstrings as Sphinx shows them: equations in LaTeX, signatures as they are written.

An equation of this package is an indented block of a docstring, in Unicode, its labels behind it:

    u_t(·, z) = Σ_k r_k(z, t) u_t^k(·, z)   [D4, D13]

The page has `u_{t}(\cdot , z) = \sum _{k} r_{k}(z, t) u_{t}^{k}(\cdot , z) \tag{D4, D13}` there.
"""

import ast
import inspect
import re
import textwrap
import unicodedata
from collections.abc import Iterator

GREEK = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"),
    *("lambda", "mu", "nu", "xi", "omicron", "pi", "rho", "varsigma", "sigma", "tau", "upsilon"),
    *("varphi", "chi", "psi", "omega"),
)
SYMBOLS = {
    **{chr(0x3B1 + i): f"\\{name}" for i, name in enumerate(GREEK)},
    **{"ε": r"\varepsilon", "φ": r"\varphi", "ℓ": r"\ell", "Σ": r"\sum", "Π": r"\prod"},
    **{"∫": r"\int", "∂": r"\partial", "∇": r"\nabla", "∞": r"\infty", "√": r"\surd"},
    **{"Δ": r"\Delta", "Ω": r"\Omega", "Φ": r"\Phi", "Θ": r"\Theta"},
    **{"≤": r"\le", "≥": r"\ge", "≠": r"\ne", "∝": r"\propto", "∈": r"\in", "≈": r"\approx"},
    **{
        "~": r"\sim",
        "→": r"\to",
        "←": r"\gets",
        "·": r"\cdot",
        "×": r"\times",
        "⊙": r"\odot",
        "⊆": r"\subseteq",
    },
    **{"‖": r"\|", "⟨": r"\langle", "⟩": r"\rangle", "…": r"\dots", "#": r"\#", "∪": r"\cup"},
    **{"⊥": r"\perp", "↦": r"\mapsto", "½": r"\tfrac12", "%": r"\%", "&": r"\&"},
    **{"−": "-", "’": "'", "²": "^2"},
}
ACCENTS = {
    "\u0302": "hat",
    "\u0303": "tilde",
    "\u0304": "bar",
    "\u0307": "dot",
    "\u030c": "check",
}
OPERATORS = {"log", "exp", "min", "max", "sin", "cos"}
NAMED = {"argmin", "argmax", "KL", "TV", "TC", "div", "softmax", "gelu", "logsumexp"}
LABELS = re.compile(r"\s+\[((?:[A-Z]\d+[ab]?)(?:(?:, |–)[A-Z]\d+[ab]?)*)\]\s*$")
TOKEN = re.compile(
    r"(?P<space> {2,}| )"
    r"|(?P<number>\d+(?:\.\d+)?e-?\d+)"
    r"|(?P<words>[A-Za-z][A-Za-z'-]*[A-Za-z](?: [A-Za-z][A-Za-z'-]*[A-Za-z](?![A-Za-z_^(\[]))*)"
    r"|(?P<accented>[^\W\d_][\u0302\u0303\u0304\u0307\u030c])"
    r"|(?P<other>.)"
)


def is_equation(block: str) -> bool:
    """Whether an indented block of a docstring is mathematics, not a command or a layout."""
    if re.match(r"\s*(@|def |for |from |import )", block):
        return False
    related = re.search(r"[=∝~≤≥≠←]", block) and re.search(r"[α-ω\u0302-\u030c⊙∞]|[_^]\{", block)
    return bool(LABELS.search(block) or related or re.search(r"[ΣΠ∫√∂‖⟨]", block))


def to_latex(equation: str) -> str:
    """One line of a Unicode equation, without its labels, in LaTeX."""
    text = unicodedata.normalize("NFD", equation.strip()).replace("=\u0338", "≠")
    text = re.sub(r"√\(([^()]*(?:\([^()]*\)[^()]*)*)\)", r"√{\1}", text)
    text = re.sub(r"\b([A-Z])\*", r"\1^*", text)
    text = re.sub(r"(?<!\w)1\[", "\N{MATHEMATICAL DOUBLE-STRUCK DIGIT ONE}[", text)
    return re.sub(" +", " ", "".join(_pieces(_grouped(text)))).strip()


def _grouped(text: str) -> str:
    """Braces around what `_` and `^` take: to a reader x_ik has the index ik, to LaTeX only i."""
    index = r"(?:[^\W\d_][\u0302-\u030c]?|\d|[+*])"
    return re.sub(rf"([_^])({index}+)(?![{{])", r"\1{\2}", text)


def _pieces(text: str) -> Iterator[str]:
    groups: list[str] = []  # what closes each open brace
    before = ""
    for match in TOKEN.finditer(text):
        kind, piece = match.lastgroup, match[0]
        if piece == "{":
            is_group = before in ("_", "^", "√")
            groups.append("}" if is_group else r"\}")
            yield "{" if is_group else r"\{"
        elif piece == "}":
            yield groups.pop() if groups else r"\}"
        elif kind == "space":
            yield r"\quad " if len(piece) > 1 else " "
        elif kind == "number":
            mantissa, exponent = piece.split("e")
            yield (rf"{mantissa} \cdot " if mantissa != "1" else "") + f"10^{{{int(exponent)}}}"
        elif kind == "words":
            spaced = [text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]]
            yield _words(piece, *spaced, in_index=before == "{" and bool(groups))
        elif kind == "accented":
            yield rf"\{ACCENTS[piece[1]]}{{{SYMBOLS.get(piece[0], piece[0])}}}"
        elif piece == "√":
            yield r"\sqrt" if text[match.end() : match.end() + 1] == "{" else r"\surd "
        elif piece == "\N{MATHEMATICAL DOUBLE-STRUCK DIGIT ONE}":
            yield r"\mathbb{1}"
        elif piece == "|" and before == " ":
            yield r"\mid"
        else:
            symbol = SYMBOLS.get(piece, piece)
            yield symbol + " " if symbol[0] == "\\" and symbol[-1].isalpha() else symbol
        before = piece


def _words(words: str, left: str, right: str, *, in_index: bool) -> str:
    if words in OPERATORS:
        return rf"\{words} "
    if words in NAMED:
        return rf"\operatorname{{{words}}}"
    if words == "dt":
        return r"\,dt"
    if len(words) == 2 and (in_index or words not in {"if", "in", "of", "or", "at", "by", "is"}):
        return words
    return rf"\text{{{' ' if left == ' ' else ''}{words}{' ' if right == ' ' else ''}}}"


def math_directive(block: list[str]) -> list[str]:
    """An indented equation as reStructuredText's math, its labels as the equation's tag."""
    labels = ", ".join(found[1] for line in block if (found := LABELS.search(line)))
    lines = [LABELS.sub("", line) for line in block]
    latex = [to_latex(line) for line in lines if line.strip()]
    body = latex[0]
    if len(latex) > 1:
        body = r"\begin{gathered} " + r" \\ ".join(latex) + r" \end{gathered}"
    tag = rf" \tag{{{labels}}}" if labels else ""
    return [
        *("", ".. math::", "   :nowrap:", ""),
        rf"   \begin{{equation*}} {body}{tag} \end{{equation*}}",
        "",
    ]


def literal_block(block: list[str]) -> list[str]:
    """A command or a layout, as it stands."""
    return ["", ".. code-block:: text", "", *("   " + line for line in block), ""]


def show_equations(app, what, name, obj, options, lines: list[str]) -> None:
    """Sphinx's autodoc-process-docstring: equations become mathematics, layouts literal blocks."""
    lines[:] = _shown(lines)


def _shown(lines: list[str]) -> Iterator[str]:
    position, in_section = 0, False
    while position < len(lines):
        line = lines[position]
        if line and not line[0].isspace():
            in_section = bool(re.fullmatch(r"(Args|Returns|Raises|Yields|Attributes):", line))
        after_blank = position == 0 or not lines[position - 1].strip()
        if position and after_blank and not in_section and _stands_alone(lines, position):
            yield from math_directive([line])
            position += 1
            continue
        if in_section or not (line.startswith("    ") and after_blank):
            if line == "Examples:":
                line = "**Examples**"
            yield _prose(line)
            position += 1
            continue
        end = position
        while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
            end += 1
        block = textwrap.dedent("\n".join(lines[position:end])).strip("\n").splitlines()
        for part in _paragraphs(block):
            yield from (math_directive if is_equation("\n".join(part)) else literal_block)(part)
        position = end


def _stands_alone(lines: list[str], position: int) -> bool:
    """An equation and its label as a paragraph of one line, not indented."""
    line, after = lines[position], "".join(lines[position + 1 : position + 2])
    sentence = "`" in line or LABELS.sub("", line).endswith(".")
    return bool(LABELS.search(line)) and not (line[:1].isspace() or sentence or after.strip())


def _prose(line: str) -> str:
    """A line as reStructuredText reads it: |p − q| is no substitution."""
    parts = line.split("`")  # what stands between backticks is code
    return "`".join(p if i % 2 else p.replace("|", r"\|") for i, p in enumerate(parts))


def _paragraphs(lines: list[str]) -> Iterator[list[str]]:
    yield from (text.splitlines() for text in re.split(r"\n\s*\n", "\n".join(lines)))


def show_signature(app, what, name, obj, options, signature, returned):
    """Sphinx's autodoc-process-signature: the annotations as they are written, not as they expand.

    `log_prior: PerExpert` says more than the union that PerExpert is.
    """
    if what not in ("function", "method"):
        return None if signature is None else (_names_only(obj, signature), None)
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))
        node = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    if not isinstance(node, ast.FunctionDef):
        return None
    arguments = ast.unparse(node.args)
    if what == "method":
        arguments = re.sub(r"^(self|cls)(, |$)", "", arguments)
    return f"({arguments})", ast.unparse(node.returns) if node.returns else None


def _names_only(obj: object, signature: str) -> str:
    """The names that a class takes; its fields have their own lines below."""
    try:
        names = [p.name for p in inspect.signature(obj).parameters.values()]  # pyright: ignore
    except (TypeError, ValueError):
        return signature
    return f"({', '.join(names)})"


def skip_aliases(app, what, name, obj, skip, options):
    """Sphinx's autodoc-skip-member: not the fields that a NamedTuple calls aliases of numbers."""
    return True if (inspect.getdoc(obj) or "").startswith("Alias for field") else None


def setup(app) -> dict:
    """As Sphinx asks of an extension. Before napoleon, which reads what is left."""
    app.connect("autodoc-process-docstring", show_equations, priority=400)
    app.connect("autodoc-process-signature", show_signature)
    app.connect("autodoc-skip-member", skip_aliases)
    return {"parallel_read_safe": True}
