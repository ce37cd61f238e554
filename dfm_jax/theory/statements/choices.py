"""S8–S12: samplers from masks whose steps choose which positions they reveal."""

import math
from collections import defaultdict
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np

from dfm_jax import exact, markov, samplers
from dfm_jax.sampling import choices
from dfm_jax.sampling.choices import Choice
from dfm_jax.theory import fields
from dfm_jax.theory.cases import Case, Cases
from dfm_jax.theory.runs import Run
from dfm_jax.theory.statement import excess, gap, statement, worst
from dfm_jax.theory.whole_runs import selected, whole_run
from dfm_jax.types import Array

ONE_A_STEP = (
    choices.first(),
    choices.most_confident(),
    choices.largest_margin(),
    choices.lowest_entropy(),
    choices.random_order(),
    choices.in_blocks(choices.most_confident(), 2),
)
READS_DRAWS = (choices.most_confident_draw(),)
ENTROPY_BOUND = 0.4  # nats: two positions are often below it
SETS = (
    choices.first(2),
    choices.most_confident(2),
    choices.entropy_bound(ENTROPY_BOUND),
    choices.confidence_threshold(0.6),
    choices.middles(),
)


def _revealed_posterior(case: Case) -> np.ndarray:
    """q(x^i = v | revealed tokens) at every state [Z, N, V]; off the support any denoiser."""

    def truth() -> np.ndarray:
        half = case.token_path(np.full(case.shape.num_positions, 0.5))
        probs, _, support = exact.posteriors(case.masked, half)
        return np.where(support[:, None, None], probs, case.denoiser)

    return case.remembered(_revealed_posterior, truth)


def _orders(case: Case) -> np.ndarray:
    """A random ranking of the positions: the case's order, turned by a uniform number. [N, N]."""
    n = case.shape.num_positions
    return np.stack([np.roll(case.order, turn) for turn in range(n)])


def _kept(cases: Cases, run: Run, choice: Choice, orders=_orders) -> np.ndarray:
    """`selected` of every case, for all draws: bool [I, R, Z, Y, N]."""

    def arrays(case: Case) -> tuple[np.ndarray, ...]:
        return _revealed_posterior(case), case.states, case.tokens, orders(case), np.array(0)

    return run(selected, *cases.each(arrays), choice=choice)


def _broken_promise(kept: np.ndarray) -> np.ndarray:
    """1 for a case in which a choice that says it is blind reads the draws, else 0: [I]."""
    reads = kept != kept[:, :, :, :1]
    return reads.reshape(len(kept), -1).any(axis=1).astype(float)


def _reveal(posterior: Array, states: Array, kept: Array) -> Array:
    """The rows of a step that reveals what a blind choice selects: [R, Z, N, S]."""
    num_states = posterior.shape[-1] + 1

    def at(p: Array, z: Array, chosen: Array) -> Array:
        return samplers.final_step_probs(p, z, chosen, num_states=num_states)

    over_states = jax.vmap(at)
    return jax.vmap(over_states, (None, None, 0))(posterior, states, kept)


def _blind_runs(cases: Cases, run: Run, kept: np.ndarray) -> np.ndarray:
    """The distributions of whole runs of a blind choice, by the package's own step: [I, Z]."""
    posterior = cases.each(_revealed_posterior)
    kernels = run(_reveal, posterior, fields.states(cases), kept[:, :, :, 0])

    def one(index: int, case: Case) -> np.ndarray:
        probs = exact.source_probs(case.masked)
        for _ in range(case.shape.num_positions):
            probs = np.mean([exact.push_forward(probs, rows) for rows in kernels[index]], axis=0)
        return probs

    return cases.each_numbered(one)


def _data(case: Case) -> np.ndarray:
    v, n, _ = case.shape
    return exact.embed(case.data, v, case.shape.num_states, n)


@statement(
    "S8",
    "all masks, exact token posteriors, one position a step, its choice independent of this step's "
    "draw given the state: the final distribution is q",
    source="known",
    kind="identity",
    falsifier="the most confident draw is kept",
    chosen_by=READS_DRAWS,
)
def one_position_by_choice(
    cases: Cases, run: Run, *, chosen_by: tuple[Choice, ...] = ONE_A_STEP
) -> np.ndarray:
    """The distribution of whole runs, in orders by confidence, margin, entropy, at random."""
    data = cases.each(_data)

    def apart(choice: Choice) -> np.ndarray:
        kept = _kept(cases, run, choice)
        if choice.blind:
            return worst(gap(_blind_runs(cases, run, kept), data), _broken_promise(kept))

        def one(index: int, case: Case) -> np.ndarray:
            start = exact.source_probs(case.masked)
            return whole_run(start, _revealed_posterior(case), kept[index])

        return gap(cases.each_numbered(one), data)

    return worst(*map(apart, chosen_by))


def _all_orders(case: Case) -> np.ndarray:
    return np.array(list(permutations(range(case.shape.num_positions))))


def _by_index(case: Case) -> np.ndarray:
    return np.arange(case.shape.num_positions)[None]


def _coin_states(case: Case) -> tuple[np.ndarray, np.ndarray]:
    n = case.shape.num_positions
    return exact.states(3, n), exact.states(2, n)


@statement(
    "S9",
    "keep the most confident draw of N iid coins, p > ½, ties broken at random: "
    "q̂(x) = P(M = m(x)) / C(N, m(x)), m(x) the number of minority tokens, "
    "M Poisson-binomial with the parameters (1 − p)ⁿ, n = 1 … N",
    source="own",
    kind="identity",
    falsifier="ties broken by index",
    orders=_by_index,
)
def most_confident_coin(cases: Cases, run: Run, *, orders=_all_orders) -> np.ndarray:
    """The distribution of whole runs of `most_confident_draw`, with every order of ties."""
    choice = choices.most_confident_draw()
    n = cases.shape.num_positions

    def coin(case: Case) -> tuple[np.ndarray, ...]:
        p = 0.5 + case.numbers[0] / 2
        states, draws = _coin_states(case)
        posterior = np.broadcast_to([p, 1 - p], (len(states), n, 2))
        return posterior, states, draws, orders(case), np.array(0)

    arrays = cases.each(coin)
    kept = run(selected, *arrays, choice=choice)
    shares = np.ascontiguousarray(arrays[0][:, 0, 0, 0])
    counts = run(samplers.minority_count_probs, shares, num_positions=n)

    def one(index: int, case: Case) -> np.ndarray:
        posterior, (states, draws) = arrays[0][index], _coin_states(case)
        start = (states == 2).all(axis=1).astype(float)
        end = whole_run(start, posterior, kept[index])
        minority = draws.sum(axis=1)
        shares = counts[index] / [math.comb(n, m) for m in range(n + 1)]
        return np.abs(end - exact.embed(shares[minority], 2, 3, n)).max()

    return cases.each_numbered(one)


def _cost(case: Case, kept: np.ndarray) -> tuple[float, float]:
    """E Σ_s TC(X^B | revealed) of a run with the true joint draws, and E[steps of two or more].

    `kept` is [R, Z, N]. A state with the most masks comes first, so its mass is whole by its turn.
    """
    v = case.shape.num_tokens
    states, tokens = case.states, case.tokens
    radix = case.shape.num_states ** np.arange(case.shape.num_positions)[::-1]
    masses = defaultdict(float)
    for x, mass in zip(np.where(case.context, tokens, v), case.data, strict=True):
        masses[int(x @ radix)] += mass
    cost, wide = 0.0, 0.0
    for z in np.argsort(-np.sum(states == v, axis=1), kind="stable"):
        if masses[z] == 0.0 or not np.any(states[z] == v):
            continue
        agrees = np.all((states[z] == v) | (tokens == states[z]), axis=1)
        given = case.data * agrees / case.data[agrees].sum()
        for block in kept[:, z]:
            share = masses[z] / len(kept)
            cost += share * _correlation(given, tokens, np.flatnonzero(block), v)
            wide += share * (block.sum() > 1)
            ends = np.where(block, tokens, states[z]) @ radix
            for end, mass in zip(ends, given, strict=True):
                masses[int(end)] += share * mass
    return cost, wide


def _correlation(probs: np.ndarray, tokens: np.ndarray, block: np.ndarray, v: int) -> float:
    """TC(X^B) = Σ_{i ∈ B} H(X^i) − H(X^B)."""
    joint = np.bincount(tokens[:, block] @ v ** np.arange(len(block)), probs)
    single = sum(exact.entropy(np.bincount(tokens[:, i], probs, v)) for i in block)
    return float(single - exact.entropy(joint))


def _independent(case: Case, kept: np.ndarray) -> tuple[float, float]:
    """The cost if the tokens of a set were independent given what is revealed."""
    return 0.0, 0.0


@statement(
    "S10",
    "all masks, exact token posteriors, sets B_s that are chosen without a look at the draws: "
    "KL(q ‖ q̂) = E_q Σ_s TC(X^{B_s} | revealed) if the choice is deterministic, ≤ if it is random; "
    "hence ≤ γ E_q[steps of two or more] if Σ H − max H ≤ γ in a step",
    source="CCL, EB, own",
    kind="identity",
    falsifier="the tokens of a set taken as independent",
    cost_of=_independent,
)
def cost_of_choice(cases: Cases, run: Run, *, cost_of=_cost) -> np.ndarray:
    """Whole runs against the total correlation on the way, for sets by five choices."""
    found = [_cost_gap(cases, run, choice, cost_of, _by_order) for choice in SETS]
    both = _distances(cases, run, choices.random_order(2), cost_of, _orders)
    found.append(excess(both[0], both[1]))
    bounded = _distances(cases, run, choices.entropy_bound(ENTROPY_BOUND), cost_of, _by_order)
    found.append(excess(bounded[0], ENTROPY_BOUND * bounded[2]))
    return worst(*found)


def _by_order(case: Case) -> np.ndarray:
    """One ranking: ties are broken by the case's order, and the choice is deterministic."""
    return case.order[None]


def _cost_gap(cases: Cases, run: Run, choice: Choice, cost_of, orders) -> np.ndarray:
    distance, cost, _ = _distances(cases, run, choice, cost_of, orders)
    return gap(distance, cost)


def _distances(cases: Cases, run: Run, choice: Choice, cost_of, orders) -> tuple[np.ndarray, ...]:
    """KL(q ‖ q̂) of whole runs, the cost on the way, and E_q[steps of two or more]."""
    kept = _kept(cases, run, choice, orders)
    ends = _blind_runs(cases, run, kept)

    def one(index: int, case: Case) -> tuple[np.ndarray, ...]:
        cost, wide = cost_of(case, kept[index][:, :, 0])
        return exact.kl(_data(case), ends[index]), np.asarray(cost), np.asarray(wide)

    return cases.each_numbered(one)


def _redraw_probs(
    posteriors: Array, states: Array, probabilities: Array, *, num_states: int
) -> Array:
    """`redraw_step_probs` at every position and state: [N, Z, N, S]."""

    def at(p: Array, z: Array, g: Array, position: Array) -> Array:
        return samplers.redraw_step_probs(p, z, position, g, num_states=num_states)

    over_states = jax.vmap(at, (0, 0, 0, None))
    over_positions = jax.vmap(over_states, (0, None, 0, 0))
    return over_positions(posteriors, states, probabilities, jnp.arange(states.shape[1]))


def _blind_probability(case: Case, row: np.ndarray, token: int) -> float:
    """A function of the other tokens: of position i's posterior given them."""
    return case.numbers[1] * (1 - row.max())


def _least_confident(case: Case, row: np.ndarray, token: int) -> float:
    """A function of the token itself: how little it is believed."""
    return 1 - row[token]


@statement(
    "S11",
    "redraw a revealed position i from its posterior given all others with probability "
    "g_i(z^{≠i}), else stay: keeps p_t",
    source="known",
    kind="identity",
    falsifier="the less a token is believed, the more often it is redrawn",
    probability=_least_confident,
)
def redrawn(cases: Cases, run: Run, *, probability=_blind_probability) -> np.ndarray:
    """Each position alone, from p_t of masked states, and from the data themselves."""
    v, n, _ = cases.shape
    s = cases.shape.num_states

    def step(case: Case) -> tuple[np.ndarray, ...]:
        radix = s ** np.arange(n)[::-1]
        known = _revealed_posterior(case)
        others = np.stack(
            [known[(np.where(np.arange(n) == i, v, case.states)) @ radix] for i in range(n)]
        )
        turns = np.zeros((n, len(case.states)))
        for i in range(n):
            for z in np.flatnonzero(case.states[:, i] < v):
                if not case.context[i]:
                    turns[i, z] = probability(case, others[i, z, i], case.states[z, i])
        half = exact.marginal_path(case.masked, case.token_path(np.full(n, 0.5)))
        return others, turns, np.stack([half, _data(case)])

    posteriors, turns, starts = cases.each(step)
    kernels = run(_redraw_probs, posteriors, fields.states(cases), turns, num_states=s)

    def one(index: int, case: Case) -> np.ndarray:
        return np.array(
            [
                np.abs(exact.push_forward(start, kernel) - start).max()
                for start in starts[index]
                for kernel in kernels[index]
            ]
        ).max()

    return cases.each_numbered(one)


def _visible(case: Case, rows: np.ndarray) -> np.ndarray:
    """Every hidden state shows its own token: a Markov chain of first order."""
    return np.eye(len(rows))


def _hidden(case: Case, rows: np.ndarray) -> np.ndarray:
    """A hidden state shows its own token most of the time."""
    return 0.7 * np.eye(len(rows)) + 0.3 * rows


def _chain_posterior(states: Array, initial: Array, transition: Array, emission: Array) -> Array:
    """`hidden_markov_posterior` at every state: [Z, N, V]."""
    each = jax.vmap(markov.hidden_markov_posterior, (0, None, None, None))
    return each(states, initial, transition, emission)


def _chain_order_posterior(states: Array, initial: Array, transition: Array) -> Array:
    each = jax.vmap(markov.markov_posterior, (0, None, None))
    return each(states, initial, transition)


@statement(
    "S12",
    "on a Markov chain of first order the middles of all runs of masks, drawn at once, are "
    "independent given the revealed tokens: bisection draws N tokens exactly in "
    "⌈log₂(N + 1)⌉ steps",
    source="own use",
    kind="identity",
    falsifier="a hidden chain",
    emission=_hidden,
)
def bisection(cases: Cases, run: Run, *, emission=_visible) -> np.ndarray:
    """A random chain of N + 1 tokens: posteriors by messages, and whole runs."""
    v, n = cases.shape.num_tokens, cases.shape.num_positions + 1
    states, draws = exact.states(v + 1, n), exact.states(v, n)

    def source(case: Case) -> exact.HiddenMarkovSource:
        rows = np.resize(case.denoiser, (2 * v + 1, v))
        rows = rows / rows.sum(axis=1, keepdims=True)
        sticky = 0.6 * np.eye(v) + 0.4 * rows[1 : v + 1]
        return exact.HiddenMarkovSource(rows[0], sticky, emission(case, rows[v + 1 :]))

    def truth(case: Case) -> tuple[np.ndarray, ...]:
        chain = source(case)
        data = exact.sequence_distribution(chain, n)
        posterior = np.zeros((len(states), n, v))
        for known in exact.states(2, n).astype(bool):
            rows, _ = exact.token_conditionals(data, known, v, n)
            here = ((states < v) == known).all(axis=1)
            posterior[here] = rows[np.where(known, states[here], 0) @ v ** np.arange(n)[::-1]]
        by_messages = exact.token_posteriors(chain, np.where(states < v, states, 0), states < v)
        return data, posterior, by_messages.probs, *chain

    data, posterior, by_messages, *chains = cases.each(truth)
    every = np.broadcast_to(states, (len(cases), *states.shape))
    in_jax = run(_chain_posterior, every, *chains)
    ranks = np.broadcast_to(np.arange(n), (len(cases), 1, n))
    shown = np.broadcast_to(draws[:1], (len(cases), 1, n))
    first = np.zeros(len(cases), int)
    kept = run(selected, posterior, every, shown, ranks, first, choice=choices.middles())

    def end_gap(index: int, case: Case) -> np.ndarray:
        probs = (states == v).all(axis=1).astype(float)
        for _ in range(math.ceil(math.log2(n + 1))):
            probs = exact.choice_step(probs, posterior[index], kept[index, 0])
        return np.abs(probs - exact.embed(data[index], v, v + 1, n)).max()

    residuals = [
        gap(by_messages, posterior),
        gap(in_jax, posterior),
        cases.each_numbered(end_gap),
    ]
    if emission is _visible:
        residuals.append(gap(run(_chain_order_posterior, every, *chains[:2]), posterior))
    return worst(*residuals)
