"""Drawing from networks and exact posteriors, each step from a stated distribution.  [S1–S12]

`sample_autoregressive` draws left to right with a cache. `sample_on_table` draws by a schedule
table: in any order, in blocks, or masked; `sample_infilling` fills in. `sample_euler`,
`sample_corrected` and `sample_adaptive` draw in continuous time; `sample_velocity` does so for any
velocity. `sample_by_choice` reveals masks in an order that a choice makes (`choices`), and
`choice_log_prob` is its likelihood; `sample_redraws` is a corrector. `masked_decoder` reads masks
left to right. The network is a static function, its parameters are an argument, and each sequence
has its own key. `dfm_jax.mixture` draws from K experts.
"""

from dfm_jax.interfaces import Denoiser as Denoiser
from dfm_jax.interfaces import HeadedDenoiser as HeadedDenoiser
from dfm_jax.sampling.adaptive import AdaptiveSample as AdaptiveSample
from dfm_jax.sampling.adaptive import sample_adaptive as sample_adaptive
from dfm_jax.sampling.autoregressive import Sample as Sample
from dfm_jax.sampling.autoregressive import next_token_log_probs as next_token_log_probs
from dfm_jax.sampling.autoregressive import sample_autoregressive as sample_autoregressive
from dfm_jax.sampling.autoregressive import sample_next_token as sample_next_token
from dfm_jax.sampling.by_choice import ChosenLogProb as ChosenLogProb
from dfm_jax.sampling.by_choice import ChosenSample as ChosenSample
from dfm_jax.sampling.by_choice import choice_log_prob as choice_log_prob
from dfm_jax.sampling.by_choice import sample_by_choice as sample_by_choice
from dfm_jax.sampling.by_choice import sample_redraws as sample_redraws
from dfm_jax.sampling.choices import Choice as Choice
from dfm_jax.sampling.choices import StepView as StepView
from dfm_jax.sampling.corrected import sample_corrected as sample_corrected
from dfm_jax.sampling.denoisers import denoiser_of as denoiser_of
from dfm_jax.sampling.denoisers import guided_denoiser as guided_denoiser
from dfm_jax.sampling.denoisers import truncated_denoiser as truncated_denoiser
from dfm_jax.sampling.euler import sample_euler as sample_euler
from dfm_jax.sampling.euler import sample_velocity as sample_velocity
from dfm_jax.sampling.masked_decoder import masked_decoder as masked_decoder
from dfm_jax.sampling.step_sizes import least_step_costs as least_step_costs
from dfm_jax.sampling.step_sizes import step_cost as step_cost
from dfm_jax.sampling.step_sizes import step_sizes as step_sizes
from dfm_jax.sampling.tables import sample_infilling as sample_infilling
from dfm_jax.sampling.tables import sample_on_table as sample_on_table
