"""Two models, and gates, on the same documents: differences, where they come from, verdicts.

`paired` has intervals, tests of equivalence and verdicts of paired differences. `gates` runs every
gate over the same sequences, scored by the same experts. `loss_account` splits what each gate loses
against one dense model into exact terms. `evaluation_sets` holds what is scored, and `record` puts
all of it together as JSON values.
"""

from dfm_jax.comparison.paired import Comparison as Comparison
from dfm_jax.comparison.paired import Interval as Interval
from dfm_jax.comparison.paired import Outcome as Outcome
from dfm_jax.comparison.paired import compare as compare
from dfm_jax.comparison.paired import document_comparison as document_comparison
from dfm_jax.comparison.paired import document_comparisons as document_comparisons
from dfm_jax.comparison.paired import document_interval as document_interval
from dfm_jax.comparison.paired import equivalence_p_value as equivalence_p_value
from dfm_jax.comparison.paired import seed_interval as seed_interval
