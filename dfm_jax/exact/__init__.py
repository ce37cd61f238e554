"""Ground truth by sums over all sequences, for spaces that are small enough to list.

For Markov and hidden Markov sources of any length it sums by message passing (`token_posteriors`).

It uses only NumPy float64, so it shares no code with the mathematics that it checks. Conventions:

- S states per position, N positions, Z = S^N sequences in lexicographic order, position 0
  slowest (`states`). A distribution is a flat vector [Z]. Data distributions live on V^N; a mask is
  state V.
- t runs from the source (x_0) to the data (x_1). A token path W is [N, S, V, S]:
  W[i, a, b, v] = p_t^i(v | x_0^i = a, x_1^i = b). A coupling is a joint distribution [Z0, Z1] of
  (x_0, x_1), or a `FactoredCoupling` for spaces above 512 sequences.
- A velocity is [Z, N, S]: u^i(v, z) at [z, i, v].
- Off the support, where p_t(z) = 0, posteriors are zeros, and a mask marks these states.
  Information is in nats.
- Nothing is clipped or renormalized. A request that is too large is refused, with its bytes.
"""

from dfm_jax.exact.bayes import expert_posterior as expert_posterior
from dfm_jax.exact.bayes import marginal_velocity as marginal_velocity
from dfm_jax.exact.bayes import pair_posterior as pair_posterior
from dfm_jax.exact.bayes import posteriors as posteriors
from dfm_jax.exact.chains import divergence as divergence
from dfm_jax.exact.chains import evolve as evolve
from dfm_jax.exact.chains import generator as generator
from dfm_jax.exact.chains import kernel as kernel
from dfm_jax.exact.chains import push_forward as push_forward
from dfm_jax.exact.chains import sequence_probs as sequence_probs
from dfm_jax.exact.checks import MAX_DENSE_STATES as MAX_DENSE_STATES
from dfm_jax.exact.checks import MAX_KERNEL_STATES as MAX_KERNEL_STATES
from dfm_jax.exact.checks import MAX_STATES as MAX_STATES
from dfm_jax.exact.checks import RefusedError as RefusedError
from dfm_jax.exact.choice_steps import choice_step as choice_step
from dfm_jax.exact.couplings import Coupling as Coupling
from dfm_jax.exact.couplings import FactoredCoupling as FactoredCoupling
from dfm_jax.exact.couplings import data_probs as data_probs
from dfm_jax.exact.couplings import dense as dense
from dfm_jax.exact.couplings import source_probs as source_probs
from dfm_jax.exact.distributions import conditional_entropy as conditional_entropy
from dfm_jax.exact.distributions import (
    conditional_total_correlation as conditional_total_correlation,
)
from dfm_jax.exact.distributions import conditionals as conditionals
from dfm_jax.exact.distributions import embed as embed
from dfm_jax.exact.distributions import entropy as entropy
from dfm_jax.exact.distributions import kl as kl
from dfm_jax.exact.distributions import marginal as marginal
from dfm_jax.exact.distributions import mutual_information as mutual_information
from dfm_jax.exact.distributions import states as states
from dfm_jax.exact.distributions import token_conditionals as token_conditionals
from dfm_jax.exact.distributions import total_correlation as total_correlation
from dfm_jax.exact.distributions import total_variation as total_variation
from dfm_jax.exact.markov import HiddenMarkovSource as HiddenMarkovSource
from dfm_jax.exact.markov import MarkovSource as MarkovSource
from dfm_jax.exact.markov import TokenPosteriors as TokenPosteriors
from dfm_jax.exact.markov import draw_sequences as draw_sequences
from dfm_jax.exact.markov import log_prob as log_prob
from dfm_jax.exact.markov import sequence_distribution as sequence_distribution
from dfm_jax.exact.markov import sequence_entropy as sequence_entropy
from dfm_jax.exact.markov import token_posteriors as token_posteriors
from dfm_jax.exact.paths import convex_token_path as convex_token_path
from dfm_jax.exact.paths import marginal_path as marginal_path
from dfm_jax.exact.paths import metric_token_path as metric_token_path
from dfm_jax.exact.paths import mixed_path as mixed_path
from dfm_jax.exact.paths import mixture_token_path as mixture_token_path
from dfm_jax.exact.paths import path_derivative as path_derivative
