"""The definitions of the proofs, as Coq extracts them, computed in exact rationals.

Coq writes a definition as a tree of functions, calls and cases. `Definitions` makes a Python
function of each. What a definition calls outside our own files (sums over a finite type, the
operations of a field, equality) is in `_PRIMITIVES`; a name that is not there is an error.

A sum inside a sum asks for the same values again and again. So every call is remembered: functions
are kept once for each code and its captured values, and two that are equal are the same object.

    definitions = Definitions.load()
    tokens = Finite(range(3))
    definitions["Basics.delta"](tokens, 1, 2)      # a Fraction

The arguments for the field itself are left out: it is always the rationals.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

from dfm_jax.json_text import read_json

FOLDER = Path(__file__).parent
# The algebraic structures of the library (a field, an order, an equality) are passed along and
# never looked at: the numbers are rationals. Finite types are looked at: they are listed in sums.
_STRUCTURE = object()
_STRUCTURES = re.compile(r"(?:[tT]ype|_display)$(?<!finType)")


class Finite:
    """A finite type: its values in order. Sequences over positions are tuples of values."""

    def __init__(self, values: Iterable[Any]):
        self.values = tuple(values)

    @cached_property
    def place(self) -> dict[Any, int]:
        """The place of each value."""
        return {value: place for place, value in enumerate(self.values)}

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)


class Function:
    """A function with the values that it has captured or been given so far."""

    __slots__ = ("arity", "code", "given", "machine")

    def __init__(self, machine: "Definitions", code: Any, arity: int, given: tuple[Any, ...]):
        self.machine, self.code, self.arity, self.given = machine, code, arity, given

    def __call__(self, *args: Any) -> Any:
        """Give it further arguments; its value, once it has all."""
        return self.machine.apply(self, args)


class Definitions:
    """All definitions of a folder of proofs, by the name `File.definition`."""

    def __init__(self, modules: dict[str, list[dict[str, Any]]], *, remember: bool = True):
        self._remember = remember
        self._functions: dict[tuple[Any, ...], Function] = {}
        self._results: dict[tuple[Any, ...], Any] = {}
        self._finite: dict[tuple[Any, ...], Finite] = {}
        self._bodies: list[Callable[..., Any]] = []
        self._globals: dict[str, Any] = {
            name: code
            if isinstance(code, Finite)
            else self._function(code, code.__code__.co_argcount - 1, ())
            for name, code in _PRIMITIVES.items()
        }
        self._field_first: set[str] = set()
        for module, terms in modules.items():
            for term in terms:
                home = f"{module}.{term['name']}"
                if term["takes_field"]:
                    self._field_first.add(home)
                self._globals[home] = _Later(term["value"], module)

    @classmethod
    def load(cls, *, remember: bool = True) -> "Definitions":
        """The definitions that stand beside the proofs."""
        return cls(read_json(FOLDER / "definitions.json"), remember=remember)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in self._globals:  # Coq writes no name with a capital letter in front
            name = name.replace(".", ".coq_")
        value = self._global(name)
        return partial(value, _STRUCTURE) if name in self._field_first else value

    def __contains__(self, name: str) -> bool:
        return name in self._globals

    def constant(self, value: Any) -> Function:
        """The function whose value is always this one."""
        return self.function(lambda _: value)

    def function(self, fn: Callable[..., Any]) -> Function:
        """A Python function as an argument for a definition; its defaults are not arguments."""

        def code(_: "Definitions", *args: Any) -> Any:
            return fn(*args)

        return self._function(code, fn.__code__.co_argcount - len(fn.__defaults__ or ()), ())

    def apply(self, fn: Any, args: tuple[Any, ...]) -> Any:
        """fn(a)(b)…: as many of the arguments as it takes, then its value to the rest."""
        while args:
            if fn is _STRUCTURE:
                return fn
            if not isinstance(fn, Function):
                raise TypeError(f"{fn!r} is not a function; it was given {args!r}.")
            missing = fn.arity - len(fn.given)
            given, args = fn.given + args[:missing], args[missing:]
            if len(given) < fn.arity:
                return self._function(fn.code, fn.arity, given)
            fn = self._value(fn.code, given)
        return fn

    def _value(self, code: Any, given: tuple[Any, ...]) -> Any:
        if not self._remember:
            return code(self, *given)
        key = (code, *given)
        if key not in self._results:
            self._results[key] = code(self, *given)
        return self._results[key]

    def _function(self, code: Any, arity: int, given: tuple[Any, ...]) -> Function:
        if not self._remember:
            return Function(self, code, arity, given)
        key = (code, arity, *given)
        if key not in self._functions:
            self._functions[key] = Function(self, code, arity, given)
        return self._functions[key]

    def _global(self, name: str) -> Any:
        value = self._globals.get(name, _STRUCTURE)
        if value is _STRUCTURE and not _STRUCTURES.search(name):
            raise KeyError(f"The proofs use `{name}`, which has no definition here.")
        if isinstance(value, _Later):
            value = self._globals[name] = self._compiled(value.tree, value.module)
        return value

    def _compiled(self, tree: dict[str, Any], module: str) -> Any:
        source = _Source(self, module)
        text = source.expression(tree, ())
        return eval(text, {"machine": self, "bodies": self._bodies})

    def finite(self, *key: Any, values: Callable[[], Iterable[Any]]) -> Finite:
        """A finite type that is made of others, kept so that it is the same object next time."""
        if key not in self._finite:
            self._finite[key] = Finite(values())
        return self._finite[key]

    def ordinals(self, n: int) -> Finite:
        """The positions 0, …, n − 1."""
        return self.finite("ordinals", n, values=lambda: range(n))

    def pairs(self, first: Finite, second: Finite) -> Finite:
        """All pairs of values of two types."""
        return self.finite("pairs", first, second, values=lambda: product(first, second))

    def sequences(self, positions: Finite, states: Finite) -> Finite:
        """All sequences of states: tuples, one state for each position."""
        repeat = len(positions)
        return self.finite(
            "sequences", positions, states, values=lambda: product(states, repeat=repeat)
        )


class _Later:
    """A definition that is compiled when it is first asked for."""

    def __init__(self, tree: dict[str, Any], module: str):
        self.tree, self.module = tree, module


class _Source:
    """Python source of an expression; a function inside it becomes a body of its own."""

    def __init__(self, machine: Definitions, module: str):
        self._machine, self._module = machine, module

    def expression(self, tree: dict[str, Any], scope: tuple[str, ...]) -> str:
        kind = tree["what"].removeprefix("expr:")
        return getattr(self, f"_{kind}")(tree, scope)

    def _rel(self, tree: dict[str, Any], scope: tuple[str, ...]) -> str:
        return _variable(tree["name"])

    def _global(self, tree: dict[str, Any], scope: tuple[str, ...]) -> str:
        name = tree["name"]
        name = name if "." in name else f"{self._module}.{name}"
        return f"machine._global({name!r})"

    def _apply(self, tree: dict[str, Any], scope: tuple[str, ...]) -> str:
        args = "".join(f"{self.expression(arg, scope)}, " for arg in tree["args"])
        return f"machine.apply({self.expression(tree['func'], scope)}, ({args}))"

    def _lambda(self, tree: dict[str, Any], scope: tuple[str, ...]) -> str:
        names = [_variable(name) for name in tree["argnames"]]
        return self._body(names, tree["body"], scope)

    def _body(self, names: list[str], body: dict[str, Any], scope: tuple[str, ...]) -> str:
        names = [f"unused_{place}" if name == "_" else name for place, name in enumerate(names)]
        used = _free(body)
        captured = tuple(name for name in scope if name in used and name not in names)
        text = self.expression(body, (*captured, *names))
        code = eval(
            f"lambda {', '.join(('machine', *captured, *names))}: {text}",
            {"bodies": self._machine._bodies},
        )
        self._machine._bodies.append(code)
        values = "".join(f"{name}, " for name in captured)
        place, arity = len(self._machine._bodies) - 1, len(captured) + len(names)
        return f"machine._function(bodies[{place}], {arity}, ({values}))"

    def _let(self, tree: dict[str, Any], scope: tuple[str, ...]) -> str:
        value = self.expression(tree["nameval"], scope)
        body = self._body([_variable(tree["name"])], tree["body"], scope)
        return f"machine.apply({body}, ({value}, ))"

    def _coerce(self, tree: dict[str, Any], scope: tuple[str, ...]) -> str:
        return self.expression(tree["value"], scope)

    def _dummy(self, tree: dict[str, Any], scope: tuple[str, ...]) -> str:
        return "None"

    def _constructor(self, tree: dict[str, Any], scope: tuple[str, ...]) -> str:
        name = tree["name"].rpartition(".")[2]
        args = [self.expression(arg, scope) for arg in tree["args"]]
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name == "S":
            return f"({args[0]} + 1)"
        if name == "Coq_cons":
            return f"({args[0]}, *{args[1]})"
        if name in ("Coq_pair", "BigBody"):
            return f"({', '.join(args)}, )"
        raise KeyError(f"The proofs use the constructor `{tree['name']}`, unknown here.")

    def _case(self, tree: dict[str, Any], scope: tuple[str, ...]) -> str:
        value = self.expression(tree["expr"], scope)
        branches = {}
        for case in tree["cases"]:
            pattern = case["pat"]
            if pattern["what"] == "pat:wild":
                branches["_"] = case["body"], []
            else:
                name = pattern["name"].rpartition(".")[2]
                names = [_variable(name) for name in pattern["argnames"]]
                branches[name] = case["body"], names
        if set(branches) <= {"Coq_true", "Coq_false", "_"}:
            yes, no = (
                self.expression(branches.get(name, branches.get("_"))[0], scope)  # type: ignore[index]
                for name in ("Coq_true", "Coq_false")
            )
            return f"({yes} if {value} else {no})"
        if set(branches) == {"Coq_nil", "Coq_cons"}:
            nil = self.expression(branches["Coq_nil"][0], scope)
            cons = self._body(branches["Coq_cons"][1], branches["Coq_cons"][0], scope)
            test = f"lambda row: machine.apply({cons}, (row[0], row[1:])) if row else {nil}"
            return f"({test})({value})"
        if set(branches) == {"O", "S"}:
            zero = self.expression(branches["O"][0], scope)
            following = self._body(branches["S"][1], branches["S"][0], scope)
            test = f"lambda n: machine.apply({following}, (n - 1, )) if n else {zero}"
            return f"({test})({value})"
        if set(branches) == {"Coq_pair"}:
            body, names = branches["Coq_pair"]
            return f"machine.apply({self._body(names, body, scope)}, {value})"
        raise KeyError(f"The proofs take cases of {sorted(branches)}, unknown here.")


_CONSTANTS = {"Coq_true": "True", "Coq_false": "False", "O": "0", "Coq_nil": "()"}


def _variable(name: str) -> str:
    return name if name == "_" else f"v_{re.sub(r'[^0-9A-Za-z_]', '_q', name)}"


def _free(tree: Any) -> set[str]:
    """The variables that occur in an expression."""
    if isinstance(tree, list):
        return set().union(*map(_free, tree))
    if isinstance(tree, dict):
        if tree.get("what") == "expr:rel":
            return {_variable(tree["name"])}
        return _free(list(tree.values()))
    return set()


def _sum(machine: Definitions, start: Any, values: Iterable[Any], body: Any) -> Any:
    total = start
    for value in reversed(tuple(values)):
        _, add, kept, term = machine.apply(body, (value,))
        if kept:
            total = machine.apply(add, (term, total))
    return total


def _fold(machine: Definitions, step: Any, start: Any, row: tuple[Any, ...]) -> Any:
    for value in row:
        start = machine.apply(step, (start, value))
    return start


def _divided(value: Any) -> Any:
    return Fraction(0) if value == 0 else 1 / value


# The library's names that the definitions use, as functions of the machine and the arguments.
_PRIMITIVES: dict[str, Any] = {
    "Ssralg.GRing.add": lambda m, s, a, b: a + b,
    "Ssralg.GRing.opp": lambda m, s, a: -a,
    "Ssralg.GRing.mul": lambda m, s, a, b: a * b,
    "Ssralg.GRing.inv": lambda m, s, a: _divided(a),
    "Ssralg.GRing.zero": lambda m, s: Fraction(0),
    "Ssralg.GRing.one": lambda m, s: Fraction(1),
    "Ssralg.GRing.natmul": lambda m, s, a, n: a * n,
    "Ssralg.GRing.exp": lambda m, s, a, n: a**n,
    "Ssrnat.nat_of_bool": lambda m, b: int(b),
    "Ssrnat.leq": lambda m, a, b: a <= b,
    "Datatypes.fst": lambda m, pair: pair[0],
    "Datatypes.snd": lambda m, pair: pair[1],
    "Datatypes.negb": lambda m, b: not b,
    "Datatypes.implb": lambda m, a, b: (not a) or b,
    "Bigop.index_enum": lambda m, t: t,
    "Bigop.BigOp.bigop": _sum,
    "Eqtype.eq_op": lambda m, t, a, b: a == b,
    "Finfun.fun_of_fin": lambda m, t, f, x: f[t.place[x]],
    "Finfun.FinfunDef.finfun": lambda m, t, f: tuple(m.apply(f, (x,)) for x in t),
    "Finfun.finfun_finType": lambda m, t, s: m.sequences(t, s),
    "Fintype.prod_finType": lambda m, t, s: m.pairs(t, s),
    "Fintype.ordinal_finType": lambda m, n: m.ordinals(n),
    "Fintype.nat_of_ord": lambda m, n, i: i,
    "Fintype.FiniteQuant.quant0b": lambda m, t, p: not any(m.apply(p, (x, x)) for x in t),
    "Fintype.FiniteQuant.all": lambda m, t, b, x, y: not b,
    "Fintype.FiniteQuant.all_in": lambda m, t, c, b, x, y: c and not b,
    "Fintype.FiniteQuant.ex_in": lambda m, t, c, b, x, y: c and b,
    "Fintype.FiniteQuant.ex": lambda m, t, b, x, y: b,
    "Fintype.bool_finType": Finite((True, False)),
    "Order.Order.lt": lambda m, d, t, a, b: a < b,
    "Order.Order.le": lambda m, d, t, a, b: a <= b,
    "Order.Order.max": lambda m, d, t, a, b: max(a, b),
    "Order.Order.min": lambda m, d, t, a, b: min(a, b),
    "Ssrnum.Num.Def.normr": lambda m, t, s, a: abs(a),
    "Seq.foldl": _fold,
}
