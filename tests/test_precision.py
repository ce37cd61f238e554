"""What the programs of the mathematics are made of: full precision, and no loop over an axis.

Read from the jaxprs of every function of `test_contracts.FUNCTIONS`, and of its gradient.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from test_contracts import FUNCTIONS, SMALL, Sizes, caller, every_function, example, gradient

HIGHEST = jax.lax.Precision.HIGHEST
CONTRACTIONS = ("dot_general", "conv_general_dilated", "ragged_dot_general")
# Axes of lengths that all differ, so that here a wrong letter in a signature shows too.
LARGE = Sizes(N=5, V=7, K=9, Z=11, P=12, T=13, J=14, D=15)


def jaxprs_in(parameter: Any) -> Iterator[Any]:
    """The jaxprs that a parameter of an equation holds, open or closed."""
    if hasattr(parameter, "eqns"):
        yield parameter
    elif hasattr(parameter, "jaxpr"):
        yield parameter.jaxpr
    elif isinstance(parameter, (tuple, list)):
        for part in parameter:
            yield from jaxprs_in(part)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation, those of calls, branches, loops and custom derivatives included."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in equation.params.values():
            for inner in jaxprs_in(parameter):
                yield from equations(inner)


def program(fn, *args: Any) -> list[Any]:
    return list(equations(jax.make_jaxpr(fn)(*args).jaxpr))


def imprecise(fn, *args: Any) -> list[str]:
    """The contractions of a program that do not ask for full precision on both sides."""
    return [
        str(equation)
        for equation in program(fn, *args)
        if equation.primitive.name in CONTRACTIONS
        and equation.params["precision"] not in (HIGHEST, (HIGHEST, HIGHEST))
    ]


# ── precision ───────────────────────────────────────────────────────────────────────────────────


@every_function
def test_every_contraction_has_the_highest_precision(name):
    assert imprecise(caller(name), example(name)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if FUNCTIONS[name].grad])
def test_every_contraction_of_a_gradient_has_the_highest_precision(name):
    assert imprecise(lambda arrays: gradient(name, arrays), example(name)) == []


def test_the_mathematics_holds_contractions():
    """Else the tests above would be empty."""
    names = {
        equation.primitive.name
        for name in FUNCTIONS
        for equation in program(caller(name), example(name))
    }
    assert "dot_general" in names


def image(x):
    return x.reshape(1, 1, 2, 2)


@pytest.mark.parametrize(
    "fn",
    [
        lambda a: jnp.dot(a, a),
        lambda a: a @ a,
        lambda a: jnp.einsum("ij,jk->ik", a, a),
        lambda a: jnp.dot(a, a, precision=jax.lax.Precision.HIGH),
        lambda a: jnp.dot(a, a, precision=(HIGHEST, jax.lax.Precision.DEFAULT)),
        lambda a: jax.lax.conv(image(a), image(a), (1, 1), "SAME"),
        jax.jit(lambda a: jnp.dot(a, a)),
        lambda a: jax.lax.scan(lambda c, row: (jnp.dot(a, c), row), a[0], a),
        lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a, lambda: a),
        lambda a: jax.lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ a, a),
        jax.checkpoint(lambda a: jnp.dot(a, a)),
        jax.vmap(lambda row: jnp.dot(row, row)),
    ],
)
def test_the_walker_sees_a_contraction_of_default_precision(fn):
    assert len(imprecise(fn, jnp.ones((2, 2)))) == 1


def test_the_walker_is_silent_where_precision_is_asked_for():
    a = jnp.ones((2, 2))
    assert imprecise(lambda a: jnp.dot(a, a, precision=HIGHEST), a) == []
    assert imprecise(lambda a: jnp.einsum("ij,jk->ik", a, a, precision="highest"), a) == []


# ── no loop over states, positions, tokens, experts or pairs ────────────────────────────────────


def length(name: str, sizes: Sizes) -> int:
    return len(program(caller(name, sizes), example(name, sizes=sizes)))


# A sum over K experts that is written out: V-wide rows are then read once, not reduced over an axis
# of K. Its program grows with K, and with no other axis.
WRITTEN_OUT = {"mixture.mix_logits": "K"}


@pytest.mark.slow
@every_function
def test_a_program_does_not_grow_with_its_axes(name):
    same = {axis: getattr(SMALL, axis) for axis in WRITTEN_OUT.get(name, "")}
    assert length(name, LARGE._replace(**same)) == length(name, SMALL)
    assert (length(name, LARGE) > length(name, SMALL)) == (name in WRITTEN_OUT)


def test_a_python_loop_over_positions_grows():
    """The twin of the test above: the count sees a loop."""

    def looped(x):
        return sum(jnp.exp(x[i]) for i in range(x.shape[0]))

    assert len(program(looped, jnp.ones(5))) > len(program(looped, jnp.ones(2)))
