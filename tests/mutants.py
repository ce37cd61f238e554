"""Wrong lines, one at a time, and the tests that ought to see them: `python tests/mutants.py`.

Not collected by pytest and not part of CI: about ten minutes of one core. The tree is copied to a
temporary folder; there each mutant replaces one piece of text, and the tests named beside it run.
A mutant that they pass has survived: a test is missing, or the mutant computes the same.

    python tests/mutants.py                        all of them, and the score
    python tests/mutants.py "a dropped prior"      one
    python tests/mutants.py --whole                by the whole files named, but for slow tests
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
KEPT = ("dfm_jax", "tests", "experiments", "docs")


class Mutant(NamedTuple):
    """A piece of text that stands once in a file of `dfm_jax`, written wrongly."""

    what: str
    file: str
    right: str
    wrong: str
    tests: str  # files of tests/, the natural ones first; without `.py`
    only: str = ""  # what `-k` leaves of them: the test that is known to see it


MUTANTS = (
    # ── named in the issue: what nothing killed ──
    Mutant(
        "Campbell's Z counts dead values",
        "velocities.py",
        "jnp.sum(positive, axis=-1, keepdims=True, dtype=p.dtype)",
        "jnp.full((p.shape[0], 1), p.shape[1], p.dtype)",
        "test_theory",
        "falsifier_does_not and V9",
    ),
    Mutant(
        "a transposed table of distances",
        "paths.py",
        "to_target = distances[:, x_1].T",
        "to_target = distances[x_1]",
        "test_paths",
        "metric_path_leaves",
    ),
    Mutant(
        "a transposed table of distances in the velocity",
        "velocities.py",
        "to_target = distances[:, x_1].T",
        "to_target = distances[x_1]",
        "test_paths",
        "metric_velocity_dies",
    ),
    Mutant(
        "slack at the ends of a schedule",
        "schedules.py",
        "slack = 8 * np.finfo(values.dtype).eps",
        "slack = 1e-2",
        "test_schedules",
        "nearly_right",
    ),
    Mutant(
        "a given position that has not arrived",
        "schedules.py",
        "jnp.where(context, -jnp.inf, schedule.log_complement(t))",
        "jnp.where(context, 0.0, schedule.log_complement(t))",
        "test_schedules test_paths",
        "prompt_never_moves",
    ),
    Mutant(
        "1 − cos at small angles",
        "schedules.py",
        "2 * jnp.sin(jnp.pi / 4 * t) ** 2,",
        "1 - jnp.cos(jnp.pi / 2 * t),",
        "test_schedules",
        "small_time",
    ),
    Mutant(
        "a NaN that a divergence hides",
        "accounting.py",
        "possible = log_p != -jnp.inf  # not `>`",
        "possible = log_p > -jnp.inf  # not `>`",
        "test_refusals",
        "no_number_is_no_number",
    ),
    Mutant(
        "a routing cost of an expert of mass 0",
        "accounting.py",
        "    require(mass > -jnp.inf, ",
        "    require(True, ",
        "test_refusals test_contracts",
        "mass_0",
    ),
    Mutant(
        "a given token that is a mask",
        "paths.py",
        '    check_tokens("x_1", x_1, mask_id)\n    return jnp.where(context, x_1, mask_id)',
        "    return jnp.where(context, x_1, mask_id)",
        "test_refusals test_paths",
        "given_token_is_no_mask",
    ),
    Mutant(
        "an ∞ lost where its mass underflows",
        "accounting.py",
        "return jnp.sum(jnp.where(infinite, jnp.inf, jnp.where(possible",
        "return jnp.sum(jnp.where(False, jnp.inf, jnp.where(possible",
        "test_refusals",
        "infinite_term",
    ),
    Mutant(
        "a mask that the last corrected step forgets",
        "sampling/corrected.py",
        "left = left | (run.carry_over & ~revealed(state.x_t, run))",
        "left = left | (run.carry_over & False)",
        "test_continuous_sampling",
        "steps_back_leave_no_mask",
    ),
    Mutant(
        "adaptive steps longer than a token's rate allows",
        "sampling/adaptive.py",
        "jnp.minimum(jumps / total, 1 / fastest)",
        "jumps / total",
        "test_continuous_sampling",
        "no_step_is_longer",
    ),
    Mutant(
        "an oracle blind below 1e-9",
        "exact/distributions.py",
        "missed = np.any((p > 0.0) & ~(q > 0.0), axis=-1)",
        "missed = np.any((p > 1e-9) & ~(q > 1e-9), axis=-1)",
        "test_exact",
        "however_small",
    ),
    # ── what rows of the ledger let pass ──
    Mutant(
        "a source that forgets its own distribution",
        "paths.py",
        "came = source * ((1 - kappa) * stay + kappa)",
        "came = ((1 - kappa) * stay + kappa)",
        "test_theory",
        "falsifier_does_not and P5",
    ),
    Mutant(
        "the mass of what is revealed, twice",
        "paths.py",
        "return log_sum_exp(jnp.where(_agrees(x_t, x_1, mask_id), log_data, -jnp.inf))",
        "return 0.7 + log_sum_exp(jnp.where(_agrees(x_t, x_1, mask_id), log_data, -jnp.inf))",
        "test_theory",
        "falsifier_does_not and P7",
    ),
    Mutant(
        "a rate with more jumps than it needs",
        "velocities.py",
        "a = slope - kappa_t * b[None, :]",
        "b = b - 1.0\n    a = slope - kappa_t * b[None, :]",
        "test_theory",
        "falsifier_does_not and V2",
    ),
    Mutant(
        "a corrector that never goes back",
        "velocities.py",
        "return alpha * jnp.asarray(forward) - beta * jnp.asarray(backward)",
        "return (alpha - beta) * jnp.asarray(forward) + 0 * jnp.asarray(backward)",
        "test_theory",
        "falsifier_does_not and V7",
    ),
    Mutant(
        "a transposed table of distances, by its row",
        "paths.py",
        "to_target = distances[:, x_1].T",
        "to_target = distances[x_1]",
        "test_theory",
        "falsifier_does_not and P6",
    ),
    Mutant(
        "Euler on the linear schedule, whatever is asked",
        "samplers.py",
        "share = jnp.asarray(size * rate(t, schedule), jnp.result_type(posterior))",
        "share = jnp.asarray(size / (1 - t) + 0 * rate(t, schedule), jnp.result_type(posterior))",
        "test_theory",
        "falsifier_does_not and S3",
    ),
    Mutant(
        "masked diffusion on t², whatever is asked",
        "schedules.py",
        "kappas = jax.vmap(schedule.kappa)(jnp.linspace(0.0, 1.0, num_steps + 1))",
        "kappas = jnp.linspace(0.0, 1.0, num_steps + 1) ** 2",
        "test_theory",
        "falsifier_does_not and A1",
    ),
    Mutant(
        "an inflated bound by the best expert",
        "accounting.py",
        "-log_prior - log_probs))",
        "1.0 - log_prior - log_probs))",
        "test_theory",
        "falsifier_does_not and B11",
    ),
    Mutant(
        "twice what the experts vary",
        "accounting.py",
        "return jnp.dot(probs, jnp.sum(gate + own, axis=-1), precision=HIGHEST)",
        "return jnp.dot(probs, jnp.sum(gate + 2 * own, axis=-1), precision=HIGHEST)",
        "test_theory",
        "falsifier_does_not and B5",
    ),
    Mutant(
        "experts drawn with chances that are not the gate's",
        "mixture/posterior.py",
        "    return jnp.tensordot(weights, kept, axes=1",
        "    return jnp.tensordot(0 * weights + 1 / len(weights), kept, axes=1",
        "test_theory",
        "falsifier_does_not and S7",
    ),
    Mutant(
        "rows that are no distribution, mixed as distributions",
        "mixture/posterior.py",
        '    check_distribution("probs", probs, read=jnp.asarray(weights) != 0)\n',
        "",
        "test_refusals",
        "mix_probs and refused and not axis and not kind",
    ),
    Mutant(
        "logits mixed as they are",
        "mixture/posterior.py",
        "weights - jnp.log(jnp.sum(jnp.exp(rows), axis=-1))",
        "weights",
        "test_fast",
        "mixture_and_its_gradients",
    ),
    Mutant(
        "a step that reads what lies off the support",
        "steps.py",
        "kernel = _kernel(finite_at_zero_mass(probs[:, None, None], step_probs), states)",
        "kernel = _kernel(step_probs, states)",
        "test_theory",
        "falsifier_does_not and Q5",
    ),
    Mutant(
        "a divergence that reads what lies off the support",
        "velocities.py",
        "flow = finite_at_zero_mass(column, velocity) * column",
        "flow = velocity * column",
        "test_theory",
        "falsifier_does_not and C1",
    ),
    # ── gates ──
    Mutant(
        "a cut gate that is not renormalized",
        "mixture/gates.py",
        "return weights / jnp.sum(weights)",
        "return weights",
        "test_gates",
        "cut_gate",
    ),
    Mutant(
        "a nucleus of one too many at a tie",
        "mixture/gates.py",
        "before < mass",
        "before <= mass",
        "test_gates",
        "cut_gate",
    ),
    Mutant(
        "a fixed share with α and 1 − α exchanged",
        "mixture/gates.py",
        "[1 - jnp.asarray(alpha), jnp.asarray(alpha)]",
        "[jnp.asarray(alpha), 1 - jnp.asarray(alpha)]",
        "test_gates",
        "share",
    ),
    Mutant(
        "a last-token gate whose death does not last",
        "mixture/gates.py",
        "dead_so_far = jnp.cumsum(~rows.valid) > 0",
        "dead_so_far = ~rows.valid",
        "test_gates",
        "dead_for_good",
    ),
    Mutant(
        "a centroid gate that feels the length of the features",
        "mixture/gates.py",
        "/ (lengths * length)",
        "/ lengths",
        "test_gates",
        "centroid or length",
    ),
    Mutant(
        "a temperature at its upper bound unsaid",
        "mixture/gates.py",
        "(chosen == 2) | (chosen == 3)",
        "chosen == 2",
        "test_gates",
        "at_a_bound",
    ),
    Mutant(
        "golden sections to the worse side",
        "mixture/gates.py",
        "lower = losses[0] <= losses[1]",
        "lower = losses[0] > losses[1]",
        "test_gates",
        "temperature_is_the_best",
    ),
    Mutant(
        "the best of the first trials forgotten",
        "mixture/gates.py",
        "losses = jnp.concatenate([losses, tried[:1], tried[-1:], tried[best, None]])",
        "losses = jnp.concatenate([losses, tried[:1], tried[-1:], tried[:1]])",
        "test_gates",
        "not_lost",
    ),
    Mutant(
        "an own gate that is no distribution",
        "mixture/gates.py",
        '    check_log_distribution("log_weights", rows.log_weights)\n',
        "",
        "test_gates",
        "no_distribution_is_refused",
    ),
    # ── sampling ──
    Mutant(
        "ties at temperature 0 to the higher id",
        "sampling/autoregressive.py",
        "ids == jnp.min(jnp.where(logits == jnp.max(logits), ids, logits.shape[0]))",
        "ids == jnp.max(jnp.where(logits == jnp.max(logits), ids, -1))",
        "test_sampling",
        "temperature or tie",
    ),
    Mutant(
        "top-p of 1 that cuts a tail",
        "sampling/autoregressive.py",
        " | (mass >= 1)",
        "",
        "test_sampling",
        "top_p or tail",
    ),
    Mutant(
        "the same noise at every step",
        "sampling/autoregressive.py",
        "own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)",
        "own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 0 * step)",
        "test_sampling",
        "distribution_of_what_is_drawn",
    ),
    Mutant(
        "a stopped row that dies of what it never draws",
        "sampling/autoregressive.py",
        "sample.valid & (possible | ~going)",
        "sample.valid & possible",
        "test_sampling",
        "behind_its_stop_token",
    ),
    Mutant(
        "a denoiser told the time of the step's end",
        "sampling/tables.py",
        "steps / num_steps, start, run=run",
        "(steps + 1) / num_steps, start, run=run",
        "test_table_sampling",
        "draws_are_of_the_data",
    ),
    Mutant(
        "tokens carried over though they may change",
        "sampling/jumps.py",
        "return (x_t != run.num_states - 1) & run.carry_over",
        "return x_t != run.num_states - 1",
        "test_table_sampling",
        "drawn_anew",
    ),
    Mutant(
        "a sequence killed by a row that nobody needs",
        "sampling/jumps.py",
        "valid = state.valid & jnp.all(is_distribution | ~needed)",
        "valid = state.valid & jnp.all(is_distribution)",
        "test_table_sampling",
        "revealed_token_is_not_read",
    ),
    Mutant(
        "jump first: the last position that jumps forgotten",
        "sampling/jumps.py",
        "num_jumps = jnp.sum(jumps)",
        "num_jumps = jnp.sum(jumps) - 1",
        "test_table_sampling",
        "parallel_draws",
    ),
    Mutant(
        "jump first: the last step that moves somebody forgotten",
        "sampling/jumps.py",
        "return order, jnp.sum(moves)",
        "return order, jnp.sum(moves) - 1",
        "test_table_sampling",
        "steps_that_move_nobody",
    ),
    Mutant(
        "a token that does not see itself in the batch's memory",
        "models/batched_decoder.py",
        "now.opens <= index",
        "now.opens < index",
        "test_batched_decoder",
        "logits_of_the_whole_sequence",
    ),
    Mutant(
        "adapters whose factor is forgotten",
        "models/lora.py",
        "config.scale * node[UP]",
        "node[UP]",
        "test_lora",
        "merged_kernels",
    ),
    Mutant(
        "Euler fills the masks of a run that ends early",
        "sampling/euler.py",
        "jnp.where((times[-1] == 1) & ~fixed, 1.0, jump_probs[-1])",
        "jnp.where(~fixed, 1.0, jump_probs[-1])",
        "test_continuous_sampling",
        "leaves_its_masks",
    ),
    Mutant(
        "a corrector that does not move on",
        "sampling/corrected.py",
        "corrected_velocity(forward, backward, 1 + beta, beta)",
        "corrected_velocity(forward, backward, beta, beta)",
        "test_continuous_sampling",
        "steps_back_keep",
    ),
    Mutant(
        "a gate told of tokens that were not drawn",
        "mixture/drawing.py",
        "jnp.where(takes, probs[:, drawn], 0.0)",
        "probs[:, drawn]",
        "test_expert_sampling",
        "moves_nothing",
    ),
    Mutant(
        "an expert cut away that kills by its silence",
        "mixture/drawing.py",
        "dead = gate.log_weights == -jnp.inf",
        "dead = gate.log_weights > 0",
        "test_expert_sampling",
        "that_the_prior_excludes",
    ),
    Mutant(
        "a row's noise that depends on the other rows",
        "mixture/drawing.py",
        "keys[padded],",
        "keys[: len(padded)],",
        "test_expert_sampling",
        "drawn_apart",
    ),
    Mutant(
        "guidance with ω for 1 + ω",
        "sampling/denoisers.py",
        "mixed = (1 + weight) * given",
        "mixed = weight * given",
        "test_expert_sampling",
        "guidance",
    ),
    # ── likelihoods ──
    Mutant(
        "an order's time that counts the context",
        "likelihoods.py",
        "t = jnp.sum(free & (x_t != mask_id))",
        "t = jnp.sum(x_t != mask_id)",
        "test_likelihoods",
        "share_of_the_free",
    ),
    Mutant(
        "an order that reveals the context by lot",
        "likelihoods.py",
        "jnp.where(context, 2.0, uniforms[1:])",
        "jnp.where(context, 0.5, uniforms[1:])",
        "test_likelihoods",
        "share_of_the_free_at_a_time",
    ),
    Mutant(
        "no position held masked",
        "likelihoods.py",
        "(uniforms[1:] < kappa) & ~held",
        "uniforms[1:] < kappa",
        "test_likelihoods",
        "masked_bound_is_the_same",
    ),
    Mutant(
        "a standard error without Bessel's correction",
        "likelihoods.py",
        "jnp.std(replicates, ddof=1)",
        "jnp.std(replicates)",
        "test_likelihoods",
        "half_their",
    ),
    Mutant(
        "a grid's mean for its sum",
        "likelihoods.py",
        "return num_steps * jnp.sum(nats)",
        "return jnp.sum(nats)",
        "test_likelihoods",
        "next_token_nll",
    ),
    Mutant(
        "a bound without its last draw",
        "likelihoods.py",
        "    if end < 1:",
        "    if end < 0:",
        "test_likelihoods",
        "left_early",
    ),
    Mutant(
        "mirrored draws that are the same draws",
        "likelihoods.py",
        "jnp.stack([uniforms, 1 - uniforms])",
        "jnp.stack([uniforms, uniforms])",
        "test_likelihoods",
        "mirrored",
    ),
    Mutant(
        "a prompt one token too long",
        "likelihoods.py",
        "jnp.arange(x.shape[0]) < prompt_length",
        "jnp.arange(x.shape[0]) <= prompt_length",
        "test_likelihoods",
        "causal_network",
    ),
    # ── clustering ──
    Mutant(
        "the larger sizes to the smaller clusters",
        "clustering/assignment.py",
        "jnp.argsort(-counts, stable=True)",
        "jnp.argsort(counts, stable=True)",
        "test_clustering",
        "larger_sizes",
    ),
    Mutant(
        "costs that forget the weight of a row",
        "clustering/assignment.py",
        "jnp.asarray(weights)[:, None] * prices[None]",
        "prices[None]",
        "test_clustering",
        "price_is_paid",
    ),
    Mutant(
        "loads two rows above their mean",
        "clustering/assignment.py",
        "state[1].max() > mean + heaviest",
        "state[1].max() > mean + 2 * heaviest",
        "test_clustering",
        "tied_rows",
    ),
    Mutant(
        "the dearest row moved first",
        "clustering/assignment.py",
        "jnp.argmin(jnp.where(movable, loss, jnp.inf))",
        "jnp.argmax(jnp.where(movable, loss, -jnp.inf))",
        "test_clustering",
        "cheapest_row",
    ),
    Mutant(
        "an empty cluster that loses its centroid",
        "clustering/directions.py",
        "jnp.where(length > 0, length, 1), otherwise)",
        "jnp.where(length > 0, length, 1), 0 * otherwise)",
        "test_clustering",
        "empty_cluster",
    ),
    Mutant(
        "the worst of several starts",
        "clustering/k_means.py",
        "best = max(range(num_restarts)",
        "best = min(range(num_restarts)",
        "test_clustering",
        "best_of_several",
    ),
    Mutant(
        "the share of a cluster left out",
        "clustering/likelihood.py",
        "scores = scores + np.log(shares)",
        "scores = scores + 0 * np.log(shares)",
        "test_likelihood_clustering",
        "share_of_a_cluster",
    ),
    Mutant(
        "passes that add to the sums of the passes before",
        "clustering/k_means.py",
        "sums, begin = jnp.zeros_like(centroids), 0",
        "sums, begin = sums, 0",
        "test_clustering",
        "batches_from",
    ),
    Mutant(
        "rows that might gain by moving left where they are",
        "clustering/assignment.py",
        "if not jnp.any(remaining) and gains.max() <= tie:",
        "if not jnp.any(remaining):",
        "test_clustering",
        "would_gain_by_it",
    ),
    Mutant(
        "half the mutual information",
        "clustering/metrics.py",
        "2 * information / jnp",
        "information / jnp",
        "test_clustering",
        "scikit",
    ),
    # ── parallel ──
    Mutant(
        "log p_t without its largest term",
        "mixture/devices.py",
        "m + jnp.log(total)",
        "jnp.log(total)",
        "test_parallel",
        "mix_as_on_one or one_reduction",
    ),
    Mutant(
        "0 · NaN between devices",
        "mixture/devices.py",
        "jnp.where(column == 0, 0.0, values)",
        "values",
        "test_parallel",
        "mix_as_on_one",
    ),
    Mutant(
        "padded runs that come back",
        "parallel/independent.py",
        "leaf[:length], runs)",
        "leaf, runs)",
        "test_parallel",
        "left_over",
    ),
    Mutant(
        "a gather that counts its operands",
        "parallel/collectives.py",
        "sizes = sizes[len(sizes) // 2 :]",
        "sizes = sizes[:]",
        "test_parallel",
        "groups_and_bytes",
    ),
    Mutant(
        "a batch that the devices do not divide",
        "parallel/dense.py",
        "bool(shape) and shape[0] % mesh.size == 0",
        "bool(shape)",
        "test_parallel",
        "do_not_divide",
    ),
    # ── mixture/networks ──
    Mutant(
        "a prompt that judges the experts a second time",
        "mixture/networks.py",
        'counts & (cache.count > 0) & (gate == "bayes")',
        'counts & (gate == "bayes")',
        "test_mixture",
        "question_does_not",
    ),
    Mutant(
        "experts in the order of their stacks",
        "mixture/networks.py",
        "jnp.concatenate([logits for logits, _ in read])[order]",
        "jnp.concatenate([logits for logits, _ in read])",
        "test_mixture",
        "token_by_token",
    ),
    Mutant(
        "a prompt that no expert makes, with a posterior",
        "mixture/networks.py",
        "return jnp.where(gate.valid, gate.log_weights, jnp.nan)",
        "return gate.log_weights",
        "test_expert_sampling",
        "no_posterior",
    ),
    Mutant(
        "tokens judged by the distribution behind them",
        "mixture/networks.py",
        "jnp.concatenate([cache.log_probs[None], padded[:-1]])",
        "padded",
        "test_mixture",
        "token_by_token",
    ),
    Mutant(
        "a dead prefix that goes on",
        "mixture/networks.py",
        "return jnp.where(rows.valid[:, None], mixed, -jnp.inf), moved",
        "return mixed, moved",
        "test_mixture",
        "no_next_distribution",
    ),
    # ── a run that is lengthened ──
    Mutant(
        "a longer run whose state keeps the old length",
        "training/loop.py",
        "run.resumed(found.state)",
        "found.state",
        "test_sweep",
        "lengthened_where",
    ),
    Mutant(
        "a weighted loss that is divided by the number of tokens",
        "training/step.py",
        "(count, jnp.sum(weights))",
        "(count, count)",
        "test_picture_training",
        "weighted_gradient",
    ),
    Mutant(
        "the first token of a conversation, learnt from another conversation",
        "training/losses.py",
        "jnp.asarray(batch.learnt) & follows",
        "jnp.asarray(batch.learnt)",
        "test_picture_training",
        "only_learnt_tokens",
    ),
    Mutant(
        "updates of one call that share their batch",
        "training/step.py",
        "batches(batch_key, s), jax.random.fold_in(step_key, s), s)",
        "batches(batch_key, first), jax.random.fold_in(step_key, s), s)",
        "test_sweep",
        "divided_among_calls",
    ),
    Mutant(
        "a call of a sweep that goes past a checkpoint",
        "training/loop.py",
        "(told.log_every, told.evaluate_every, told.save_every)",
        "(told.log_every, told.evaluate_every)",
        "test_sweep",
        "up_to_the_next_event",
    ),
    Mutant(
        "an update past the peak that depends on no length",
        "training/config.py",
        "made > optimizer.warmup_steps + 1",
        "made > optimizer.warmup_steps + 2",
        "test_sweep",
        "only_what",
    ),
    # ── launches ──
    Mutant(
        "a process on the cores of others",
        "launch/local.py",
        "running_on(cores)",
        "running_on(())",
        "test_devices",
        "children_that_run_at_once_have_other_cores",
    ),
    Mutant(
        "a set of devices given to two",
        "launch/local.py",
        "free.append(one.devices)",
        "free.insert(0, devices[0])",
        "test_devices",
        "children_that_run_at_once",
    ),
    Mutant(
        "a job between two arrays",
        "launch/slurm.py",
        "jobs[first : first + size]",
        "jobs[first + 1 : first + size]",
        "test_launch",
        "more_jobs_than_an_array",
    ),
    Mutant(
        "a JobSet with the jobs of an earlier file",
        "launch/jobset.py",
        "-jobs-{digest}-{place}",
        "-jobs-{place}",
        "test_launch",
        "never_takes_the_jobs",
    ),
    # ── watching ──
    Mutant(
        "a tracker that ends a run",
        "training/metrics.py",
        "except Exception as error:\n            self._missed += 1",
        "except ValueError as error:\n            self._missed += 1",
        "test_trackers",
        "told_once",
    ),
    Mutant(
        "a log of which all is read",
        "training/status.py",
        "file.seek(max(0, size - limit))",
        "file.seek(0)",
        "test_status",
        "100_megabytes",
    ),
    Mutant(
        "a process of another host that never falls silent",
        "training/status.py",
        "now - max(signs) < files.silent_after",
        "now >= 0",
        "test_status",
        "the_state",
    ),
    Mutant(
        "the best among the seeds that went well",
        "training/report.py",
        "statistics.fmean(values) if judged",
        "statistics.fmean(values) if values",
        "test_report",
        "seed_failed",
    ),
    Mutant(
        "finished and unfinished configurations in one comparison",
        "training/report.py",
        '[one for one in same if one.state == "finished"] or same',
        "same",
        "test_report",
        "finished_configurations",
    ),
    # ── runs on object stores ──
    Mutant(
        "an entry whose key leads out of its folder",
        "storage/lease.py",
        "if not plain or not _KEY.fullmatch(entry.key):",
        "if not plain:",
        "test_storage",
    ),
    Mutant(
        "the next owner deletes what the list names",
        "storage/lease.py",
        "and int(owner) < self.fence and not key.startswith(listed)",
        "and int(owner) < self.fence",
        "test_storage",
    ),
    Mutant(
        "a file that was sent in part is named",
        "storage/lease.py",
        "if (len(found), sum(found.values())) != (entry.objects, entry.size):",
        "if len(found) != entry.objects:",
        "test_storage",
    ),
    Mutant(
        "a store that ignores If-Match",
        "storage/lease.py",
        "if objects.create(key, content) or objects.replace(key, content, gone):",
        "if objects.create(key, content):",
        "test_storage",
    ),
    Mutant(
        "half a line of a log",
        "storage/lease.py",
        'return content[: content.rfind(b"\\n") + 1]',
        "return content",
        "test_storage",
    ),
    Mutant(
        "what the owner removed meanwhile is called missing",
        "storage/folders.py",
        "if entry is not None and self._entry() != entry:",
        "if entry is None:",
        "test_storage",
    ),
    # ── samplers that choose what they reveal ──
    Mutant(
        "a middle that is not one",
        "sampling/choices.py",
        "(here == (left + right) // 2)",
        "(here == (left + right + 1) // 2)",
        "test_choices",
        "middle",
    ),
    Mutant(
        "the largest scores last",
        "sampling/choices.py",
        "jnp.lexsort((view.ranks, -scores, ~view.pending))",
        "jnp.lexsort((view.ranks, scores, ~view.pending))",
        "test_choices",
        "a_choice_selects",
    ),
    Mutant(
        "an entropy bound of all, the largest too",
        "sampling/choices.py",
        "jnp.concatenate([jnp.zeros(1), jnp.cumsum(ascending)[:-1]])",
        "jnp.cumsum(ascending)",
        "test_choices",
        "a_choice_selects",
    ),
    Mutant(
        "a likelihood of what was drawn",
        "sampling/by_choice.py",
        "tokens = view.draws if told is None else told",
        "tokens = view.draws",
        "test_choices",
        "log_probability",
    ),
    Mutant(
        "a redraw that is told the token",
        "sampling/by_choice.py",
        "row = whole(run.denoiser)(params, masked, jnp.mean(masked != mask_id))[at]",
        "row = whole(run.denoiser)(params, x, jnp.mean(masked != mask_id))[at]",
        "test_choices",
        "redraws_forget",
    ),
    Mutant(
        "backward messages that are forward ones",
        "markov.py",
        "both = jnp.stack([transition, transition.T])",
        "both = jnp.stack([transition, transition])",
        "test_markov",
        "the_jax_form",
    ),
    Mutant(
        "a gate that is told of another token",
        "mixture/drawing.py",
        "probs[:, at, view.draws[at]]",
        "probs[:, at, view.draws[0]]",
        "test_expert_sampling",
        "chosen_order or order_of_a_table",
    ),
    Mutant(
        "a masked decoder that reads one token too many",
        "sampling/masked_decoder.py",
        "x_t = jnp.where(here <= last, whole_x, num_tokens)",
        "x_t = jnp.where(here <= last + 1, whole_x, num_tokens)",
        "test_masked_decoder",
        "whatever_the_network_is",
    ),
)


class StaleError(Exception):
    """The text to break does not stand in its file once: the code has moved on."""


def killer(mutant: Mutant, tree: Path, *, whole: bool) -> str | None:
    """The first test that fails with the mutant in place; the file is put back afterwards."""
    path = tree / "dfm_jax" / mutant.file
    right = path.read_text("utf-8")
    if right.count(mutant.right) != 1:
        raise StaleError
    path.write_text(right.replace(mutant.right, mutant.wrong), "utf-8")
    files = [f"tests/{name}.py" for name in mutant.tests.split()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["--exhaustive", *files]
    # No bytecode: of two texts of one size, written in one second, the old one would be run.
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    options = {"cwd": tree, "env": environment, "capture_output": True, "text": True}
    try:
        whole = whole and mutant.tests != "test_theory"  # there each row is a minute
        for only in [mutant.only] * bool(mutant.only) + [""] * (whole or not mutant.only):
            chosen = ["-k", only] if only else ["-m", "not slow"]  # named, a slow one runs too
            done = subprocess.run([*command, *chosen], **options, check=False)
            if done.returncode == 1:
                return "".join(
                    re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)[:1]
                )
            if done.returncode not in (0, 5):  # 5: -k leaves none of them
                raise RuntimeError(f"{mutant.what}: pytest ended with\n{done.stdout[-2000:]}")
        return None
    finally:
        path.write_text(right, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="mutants, by what they are; all by default")
    parser.add_argument(
        "--whole", action="store_true", help="whole files, where one test was named"
    )
    given = parser.parse_args()
    chosen = [m for m in MUTANTS if not given.names or m.what in given.names]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in KEPT:
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("pyproject.toml", "EQUATIONS.md", "constraints.txt", "README.md"):
            shutil.copy(ROOT / file, tree)
        for mutant in chosen:
            begun = time.monotonic()
            try:
                killed_by = killer(mutant, tree, whole=given.whole)
                verdict = "SURVIVED" if killed_by is None else "killed"
            except StaleError:
                killed_by, verdict = None, "STALE"
            survivors += [mutant] * (killed_by is None)
            line = f"{verdict:9} {time.monotonic() - begun:5.0f} s  {mutant.file}: {mutant.what}"
            print(line, killed_by or "", sep="  ", flush=True)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
