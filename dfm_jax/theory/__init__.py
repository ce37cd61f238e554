"""Each statement of the theory, executable: residual, falsifier, ledger, `verify`.

    for row in verify(["D4"]):
        print(row.label, row.residual, row.falsifier)

A residual must vanish on every case of the statement's domain; its falsifier, the same with one
hypothesis broken, must not on generic cases. The oracle is `dfm_jax.exact`, which shares no code
with what it judges. A statement of your own is a function under the decorator `statement` of
`dfm_jax.theory.statement`, which holds `gap`, `excess` and `worst` too.
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
