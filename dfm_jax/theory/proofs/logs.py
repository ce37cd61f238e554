"""Logarithms of rationals, kept exact: Σ_n c_n log n over whole numbers n with rational c_n.

Whether such a sum is 0 is decided without rounding. Its numbers n are written as products of
powers of numbers that have no common factors; the logarithms of these are independent over the
rationals, so the sum is 0 where each of them has exponent 0 in all.
"""

import math
from collections import defaultdict
from fractions import Fraction


class Log:
    """An exact sum of logarithms; it can be added, scaled by a rational, and compared."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[int, Fraction]) -> None:
        self.terms = {n: c for n, c in terms.items() if n > 1 and c}

    @classmethod
    def of(cls, x: Fraction) -> "Log":
        """Log x; 0 where x is not positive, a value that no theorem uses."""
        if x <= 0:
            return cls({})
        return cls({x.numerator: Fraction(1)}) - cls({x.denominator: Fraction(1)})

    def __add__(self, other: "Log | Fraction | int") -> "Log":
        if not isinstance(other, Log):
            return self if other == 0 else NotImplemented
        terms = defaultdict(Fraction, self.terms)
        for n, c in other.terms.items():
            terms[n] += c
        return Log(terms)

    __radd__ = __add__

    def __neg__(self) -> "Log":
        return self * Fraction(-1)

    def __sub__(self, other: "Log") -> "Log":
        return self + -other

    def __mul__(self, scale: Fraction | int) -> "Log":
        return Log({n: c * scale for n, c in self.terms.items()})

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Log):
            return other == 0 and self == Log({})
        difference = self - other
        exponents: dict[int, Fraction] = defaultdict(Fraction)
        base = _coprime(list(difference.terms))
        for n, c in difference.terms.items():
            for factor in base:
                while n % factor == 0:
                    n //= factor
                    exponents[factor] += c
        return not any(exponents.values())

    __hash__ = object.__hash__

    def __float__(self) -> float:
        return math.fsum(float(c) * math.log(n) for n, c in self.terms.items())


def _coprime(numbers: list[int]) -> list[int]:
    """Numbers above 1 without common factors, of which all the given ones are products."""
    base: list[int] = []
    todo = list(numbers)
    while todo:
        n = todo.pop()
        if n == 1:
            continue
        for place, m in enumerate(base):
            common = math.gcd(n, m)
            if common > 1:
                del base[place]
                todo += [common, n // common, m // common]
                break
        else:
            base.append(n)
    return base
