"""Two models on the same documents: paired differences, their intervals, equivalence, a verdict."""

from dfm_jax.comparison.paired import Comparison as Comparison
from dfm_jax.comparison.paired import Interval as Interval
from dfm_jax.comparison.paired import Outcome as Outcome
from dfm_jax.comparison.paired import compare as compare
from dfm_jax.comparison.paired import document_comparison as document_comparison
from dfm_jax.comparison.paired import document_interval as document_interval
from dfm_jax.comparison.paired import equivalence_p_value as equivalence_p_value
from dfm_jax.comparison.paired import seed_interval as seed_interval
