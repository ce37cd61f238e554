"""The statements of the theory as code: residual, falsifier, ledger, `verify`.

    for row in verify(["D4"]):
        print(row.label, row.residual, row.falsifier)

A residual must vanish on every case of the statement's domain. Its falsifier is the same with one
hypothesis broken, and must not vanish on generic cases. The oracle is `dfm_jax.exact`, which shares
no code with the mathematics that it checks. A statement of your own is a function with the
decorator `statement` of `dfm_jax.theory.statement`; `gap`, `excess` and `worst` are there too.
"""

from dfm_jax.theory import statements as statements
from dfm_jax.theory.cases import Case as Case
from dfm_jax.theory.cases import Cases as Cases
from dfm_jax.theory.cases import Shape as Shape
from dfm_jax.theory.ledger import equations as equations
from dfm_jax.theory.runs import Run as Run
from dfm_jax.theory.statement import LEDGER as LEDGER
from dfm_jax.theory.statement import Statement as Statement
from dfm_jax.theory.verification import Row as Row
from dfm_jax.theory.verification import import_statements as import_statements
from dfm_jax.theory.verification import verify as verify
