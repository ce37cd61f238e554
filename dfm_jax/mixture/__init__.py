"""Mixtures: one model of many experts, by the posterior over them.   [D1–D8, D13, B6, B10, S6, S7]

`posterior` mixes distributions, velocities and logits; `gates` choose the weights. Both are
mathematics and know nothing of networks. `networks` makes one decoder of K decoders, and one
denoiser of K denoisers. `drawing` draws from all experts, or from one that is drawn first and kept.
`devices` mixes experts that lie on different devices.
"""

from dfm_jax.mixture.devices import mix_over_devices as mix_over_devices
from dfm_jax.mixture.drawing import MixtureDraw as MixtureDraw
from dfm_jax.mixture.drawing import OneExpertSample as OneExpertSample
from dfm_jax.mixture.drawing import sample_mixed_step as sample_mixed_step
from dfm_jax.mixture.drawing import sample_mixture_by_choice as sample_mixture_by_choice
from dfm_jax.mixture.drawing import sample_mixture_on_table as sample_mixture_on_table
from dfm_jax.mixture.drawing import sample_one_expert as sample_one_expert
from dfm_jax.mixture.drawing import sample_one_expert_on_table as sample_one_expert_on_table
from dfm_jax.mixture.gates import FittedTemperature as FittedTemperature
from dfm_jax.mixture.gates import GateState as GateState
from dfm_jax.mixture.gates import bayes_gate as bayes_gate
from dfm_jax.mixture.gates import bayes_gate_update as bayes_gate_update
from dfm_jax.mixture.gates import centroid_gate as centroid_gate
from dfm_jax.mixture.gates import fit_temperature as fit_temperature
from dfm_jax.mixture.gates import fixed_share_gate as fixed_share_gate
from dfm_jax.mixture.gates import fixed_share_update as fixed_share_update
from dfm_jax.mixture.gates import gate_init as gate_init
from dfm_jax.mixture.gates import hard_gate as hard_gate
from dfm_jax.mixture.gates import last_token_gate as last_token_gate
from dfm_jax.mixture.gates import nucleus_gate as nucleus_gate
from dfm_jax.mixture.gates import run_gate as run_gate
from dfm_jax.mixture.gates import static_gate as static_gate
from dfm_jax.mixture.gates import top_experts_gate as top_experts_gate
from dfm_jax.mixture.networks import Context as Context
from dfm_jax.mixture.networks import MixtureCache as MixtureCache
from dfm_jax.mixture.networks import MixtureDenoiserParams as MixtureDenoiserParams
from dfm_jax.mixture.networks import MixtureParams as MixtureParams
from dfm_jax.mixture.networks import conditional_mixture_decoder as conditional_mixture_decoder
from dfm_jax.mixture.networks import mixture_decoder as mixture_decoder
from dfm_jax.mixture.networks import mixture_denoiser as mixture_denoiser
from dfm_jax.mixture.networks import mixture_params as mixture_params
from dfm_jax.mixture.networks import prompt_log_posterior as prompt_log_posterior
from dfm_jax.mixture.posterior import context_posterior as context_posterior
from dfm_jax.mixture.posterior import expert_posterior as expert_posterior
from dfm_jax.mixture.posterior import mix as mix
from dfm_jax.mixture.posterior import mix_log_probs as mix_log_probs
from dfm_jax.mixture.posterior import mix_logits as mix_logits
from dfm_jax.mixture.posterior import mix_probs as mix_probs
from dfm_jax.mixture.posterior import shared_expert_log_prob as shared_expert_log_prob
