"""Whatever is a task trains, sweeps, mixes, is judged and draws, from the command line."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import own_networks
import pytest

from dfm_jax import cli
from dfm_jax.interfaces import Losses, Network, Task
from dfm_jax.models import TransformerConfig, router, transformer
from dfm_jax.parallel import make_mesh
from dfm_jax.training.batches import Batch
from dfm_jax.training.config import LogConfig, TrainConfig, config_digest, to_json
from dfm_jax.training.ensemble import read_ensemble
from dfm_jax.training.evaluation import evaluate_ensemble, load_member
from dfm_jax.training.examples import Examples, array_examples
from dfm_jax.training.fit import make_run, train_member
from dfm_jax.training.members import tokenizer_of
from dfm_jax.training.presets import PRESETS, load_config
from dfm_jax.training.sweep import grid, make_sweep
from dfm_jax.training.tasks import named_function, router_task, task_of, uniform_task

SMALL = ("model.width=16", "num_steps=6", "num_positions=16", "batch_size=4", "held_out=0.4")
TRANSFORMER = ("model.num_layers=1", "model.num_heads=2", "model.ffn_width=16")
MASKED = (*SMALL, *TRANSFORMER, "num_grid_steps=4")
MORE = pytest.mark.exhaustive  # the adapters have tests of their own in test_networks.py


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for k, words in enumerate(
        ("light and day", "waters and night", "seas and land", "herb and seed")
    ):
        part = folder / f"expert_{k:03d}"
        part.mkdir()
        for number in range(8):
            (part / f"{number}.txt").write_text(f"{number} {words} {number * 7}, " * 2)
    return folder


def lines_between(begin: str, end: str) -> int:
    text = Path(own_networks.__file__).read_text()
    return len(text[text.index(begin) : text.index(end)].strip().splitlines()) - 1


def done(*words: str) -> None:
    assert cli.main([*words]) == 0


MAKES = ("own_networks:plain", "own_networks:of_nnx", "own_networks:of_equinox", "null")


@pytest.mark.slow
def test_networks_of_every_make_do_all_that_the_transformer_does(data, tmp_path, capsys):
    """Two functions, nnx, equinox and the transformer train, and are one mixture.

    Of one vocabulary, which is enough: judged as a mixture is defined, and drawn from.
    """
    run = tmp_path / "run"
    for make in ("plain", "nnx", "equinox"):
        assert lines_between(f"# begin {make}", f"# end {make}") < 40
    for expert, task in enumerate(MAKES):
        words = ("--config", "tiny", "--data", str(data), "--run", str(run))
        fields = ("--set", f"task={task}", *SMALL, *TRANSFORMER)
        done("train", *words, "--expert", str(expert), *fields)
    done("make-ensemble", "--run", str(run))
    capsys.readouterr()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("light waters")
    done("evaluate", "--run", str(run), "--data", str(tmp_path / "text"))
    lines = capsys.readouterr().out.splitlines()
    names = [f"expert_{expert:03d}" for expert in range(len(MAKES))]
    assert [line.split()[0] for line in lines[1:]] == [*names, "ensemble"]
    assert all(line.endswith("exact −log p") for line in lines[1:])

    ensemble = read_ensemble(run / "ensemble.json")
    found = evaluate_ensemble(run, ensemble, data=tmp_path / "text")
    before = np.array([256, *b"light water"])
    tokens, each = np.frombuffer(b"light waters", np.uint8), []
    for name, weight in zip(names, ensemble.log_weights, strict=True):
        trained = load_member(run / name)
        decoder = task_of(trained.config).decoder
        read = jax.jit(lambda params, d=decoder: d.extend(params, d.init_cache(12), before)[0])
        logits = np.asarray(read(trained.state.params), np.float64)
        rows = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        each.append(weight + rows[np.arange(12), tokens].sum())
    assert found.per_token[0] == pytest.approx(-np.logaddexp.reduce(each) / 12, rel=1e-5)

    args = ("sample", "--run", str(run), "--max-new", "5", "--ids", "--prompt", "light")
    done(*args, "--seed", "3")
    drawn = list(map(int, capsys.readouterr().out.split()))
    assert bytes(drawn[:5]) == b"light"
    assert len(drawn) == 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["plain", *(pytest.param(n, marks=MORE) for n in ("of_nnx", "of_equinox"))]
)
def test_a_network_of_your_own_is_swept(name, data, tmp_path):
    common = ("--config", "tiny", "--data", str(data), "--run", str(tmp_path))
    fields = ("--set", f"task=own_networks:{name}", *SMALL)
    done("sweep", *common, "--devices", "1", "--grid", "seed=0:4", *fields)
    rows = json.loads((tmp_path / "group_000" / "sweep.json").read_text())
    assert len({row["validation"] for row in rows}) == 4


@pytest.mark.slow
def test_a_masked_run_and_its_ensemble_fill_in_masks(data, tmp_path, capsys):
    run = str(tmp_path / "run")
    for expert in ("0", "1"):
        words = ("--config", "small-masked", "--data", str(data), "--run", run)
        done("train", *words, "--expert", expert, "--set", *MASKED)
    capsys.readouterr()
    args = ("sample", "--run", run, "--max-new", "5", "--ids", "--prompt", "light")
    done("make-ensemble", "--run", run)
    done("evaluate", "--run", run, "--draws", "1")
    assert "ensemble: not judged, for a mixture of drawn bounds is no bound." in (
        capsys.readouterr().out
    )
    rows = []
    for more in (("--expert", "1"), ()):
        done(*args, *more, "--num-samples", "2")
        rows += [list(map(int, line.split())) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 4
    assert rows[0] != rows[1]
    for row in rows:
        assert bytes(row[:5]) == b"light"
        assert len(row) == 10
        assert 0 <= min(row) <= max(row) < 256  # no mask is left
    assert cli.main([*args[:3], "--max-new", "17", "--expert", "0"]) == 2
    assert "`max_new` must be at most" in capsys.readouterr().err


class Labeled(NamedTuple):
    """A row of features and its part."""

    x: np.ndarray
    part: np.ndarray


def labeled(seed: int, num_rows: int) -> Labeled:
    """Two ids, whose sum says the part."""
    x = np.random.default_rng(seed).integers(0, 3, (num_rows, 2)).astype(np.int32)
    return Labeled(x, (x.sum(axis=1) > 1).astype(np.int32))


def router_of_arrays(config):
    """A task that reads data of its own."""
    model = TransformerConfig(num_tokens=3, width=16, num_layers=1, num_heads=2, ffn_width=32)
    network = router(model, 2, last=True)

    def read_examples(config, source):
        return array_examples(labeled(0, 64), config.batch_size, held_out=labeled(1, 32))

    return router_task(network)._replace(read_examples=read_examples)


@pytest.mark.slow
def test_a_router_trains_on_arrays_and_is_judged(data, tmp_path, capsys):
    fields = ("task=test_tasks:router_of_arrays", "num_steps=60", "optimizer.learning_rate=1e-2")
    words = ("--config", "tiny", "--data", str(data), "--run", str(tmp_path))
    done("train", *words, "--set", *fields)
    capsys.readouterr()
    done("evaluate", "--run", str(tmp_path))
    row = capsys.readouterr().out.splitlines()[1]
    assert row.endswith("the loss, neither −log p nor a bound on it")
    assert float(row.split()[3]) < 0.1  # below log 2: it has learned the parts
    assert row.split()[2] == "32"
    assert cli.main(["sample", "--run", str(tmp_path)]) == 2
    assert "The task must have a decoder or a denoiser" in capsys.readouterr().err
    assert cli.main(["train", *words, "--text-only", "--set", *fields]) == 2
    assert (
        "`text_only` must not be given, because the task reads its own data"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_pictures_and_questions_train_and_are_judged_from_the_command_line(tmp_path, capsys):
    """Experts that have read other pictures, and their mixture; the answer is in the picture."""
    random = np.random.default_rng(0)
    for k in range(2):
        kind = random.integers(0, 2, 40)
        features = random.normal(size=(40, 2, own_networks.NUM_FEATURES)).astype(np.float32)
        features[:, 1] += 3.0 * (2 * kind[:, None] - 1)
        tokens = np.stack([np.full(40, 7), np.full(40, 9), 20 + kind, np.zeros(40, int)], axis=1)
        answers = np.arange(4)[None] == np.full((40, 1), 2)
        folder = tmp_path / "data" / f"expert_{k:03d}"
        folder.mkdir(parents=True)
        np.savez(folder / "answers.npz", features=features, tokens=tokens, answers=answers)
    fields = ["model.width=16", "model.num_layers=1", "model.num_heads=2", "model.ffn_width=16"]
    fields += ["num_steps=60", "optimizer.learning_rate=0.01"]
    run = tmp_path / "run"
    for expert in ("0", "1"):
        words = ["train", "--config", "tiny", "--data", str(tmp_path / "data"), "--run", str(run)]
        words += ["--expert", expert, "--set", "task=own_networks:of_pictures", *fields]
        done(*words)
    done("make-ensemble", "--run", str(run))
    capsys.readouterr()
    done("evaluate", "--run", str(run))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(row[0], row[2]) for row in rows] == [
        ("expert_000", "8"),
        ("expert_001", "8"),
        ("ensemble", "16"),
    ]
    assert all(0 < float(row[3]) < np.log(2) / 2 for row in rows)
    questions, options = tokens[:, :2], {"max_new": 1, "temperature": 0}
    drawn = own_networks.drawn_answers(
        run / "expert_001", jax.random.key(0), features, questions, **options
    )
    assert np.mean(drawn.tokens[:, 2] == 20 + kind) > 0.9
    assert cli.main(["sample", "--run", str(run), "--expert", "0"]) == 2
    assert "must have a decoder or a denoiser" in capsys.readouterr().err


def test_every_row_of_arrays_comes_once_an_epoch_and_all_are_judged():
    examples = array_examples(labeled(0, 12), 4, held_out=labeled(1, 6))
    key = jax.random.key(0)
    rows = np.concatenate([examples.batches(key, step).x for step in range(3)])
    expected = labeled(0, 12).x
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])
    held = examples.held_out(None)
    assert [len(batch.part) for batch in held.batches] == [4, 4]
    found = held.by_document(np.arange(8.0), np.ones(8, int))
    np.testing.assert_array_equal(found.nats, np.arange(6))
    assert examples.description["train_tokens"] == 12
    other = array_examples(labeled(2, 12), 4).description["train_sha256"]
    assert other != examples.description["train_sha256"]
    with pytest.raises(ValueError, match="The arrays of `train` must have the same number of rows"):
        array_examples((np.zeros(3), np.zeros(4)), 2)


def test_a_config_without_a_task_of_its_own_is_written_as_before():
    """Run folders of 0.1 stay valid: what goes with a checkpoint is compared by its digest."""
    assert "task" not in to_json(PRESETS["tiny"])
    named = TrainConfig(task="own_networks:plain")
    assert config_digest(to_json(named)) != config_digest(to_json(TrainConfig()))


def no_task(config):
    """What a user may return by mistake."""
    return Network(lambda key: {}, lambda params, x_t: x_t)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:task", "`task` must name a module that Python finds; got task = 'nowhere:task'"),
        (
            "own_networks:none",
            "must name a function of own_networks; got task = 'own_networks:none'",
        ),
        ("own_networks", "`task` must be MODULE:FUNCTION"),
        (
            "test_tasks:no_task",
            "must name a function that returns a Task; got type of the result = 'Network'",
        ),
    ],
)
def test_a_task_that_is_none_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        task_of(TrainConfig(task=name))


def test_examples_that_are_none_are_refused(tmp_path, monkeypatch):
    task = Task(lambda key: {}, lambda params, example: 0, read_examples=lambda *_: 3)
    monkeypatch.setattr(own_networks, "of_nothing", lambda config: task, raising=False)
    config = TrainConfig(task="own_networks:of_nothing")
    assert named_function("own_networks:of_nothing")(config) is task
    with pytest.raises(ValueError, match="`read_examples` of the task must return Examples"):
        train_member(config, tmp_path, tmp_path / "run", log_config=LogConfig())


def test_a_run_of_examples_is_a_run():
    """The engine asks for no text: a quadratic in one number, by the function `make_run`."""

    def losses(params, example, key=None):
        return Losses(jnp.square(params["w"] - example)[None], jnp.ones(1, bool))

    task = Task(init=lambda key: {"w": jnp.zeros(())}, losses=losses, measure="loss")
    own_networks.quadratic = lambda config: task  # pyright: ignore
    config = TrainConfig(task="own_networks:quadratic", num_steps=3, batch_size=2, held_out=0.0)
    examples = array_examples(np.ones(4, np.float32), 2)
    assert isinstance(examples, Examples)
    run = make_run(config, examples, LogConfig())
    state = run.init()
    for step in range(3):
        state, _ = run.update(state, step)
    assert 0 < float(state.params["w"]) < 1


def test_bits_of_a_run_do_not_depend_on_calls_or_on_where_batches_are_made():
    """Updates 0 to 4 one at a time, by calls of 2 and 3, and with batches that the host makes."""

    def losses(params, example, key=None):
        return Losses(jnp.square(params["w"] * example - 1).sum()[None], jnp.ones(1, bool))

    task = Task(init=lambda key: {"w": jnp.ones(3)}, losses=losses, measure="loss")
    config = TrainConfig(num_steps=5, batch_size=2, held_out=0.0)
    rows = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    examples = array_examples(rows, 2)
    host = examples._replace(batches=lambda key, step: np.asarray(examples.batches(key, step)))
    run, by_host = (make_run(config, each, LogConfig(), task=task) for each in (examples, host))
    assert run.updates is not None
    assert by_host.updates is None
    ends = []
    for each in (run, by_host):
        state = each.init()
        for step in range(5):
            state, metrics = each.update(state, step)
        ends.append((state, metrics))
    state = run.init()
    state, _ = run.updates(state, 0, 2)
    state, metrics = run.updates(state, 2, 3)
    ends.append((state, jax.tree.map(lambda leaf: leaf[2], metrics)))
    assert float(jnp.abs(state.params["w"] - 1).max()) > 1e-5
    for end in ends[1:]:
        for one, other in zip(jax.tree.leaves(ends[0]), jax.tree.leaves(end), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_what_the_transformers_objectives_ask_of_a_model_is_not_asked_of_a_task_that_is_given():
    """A bidirectional network that reads V tokens and the time, without a mask."""
    model = TransformerConfig(
        num_tokens=3,
        width=8,
        num_layers=1,
        num_heads=2,
        ffn_width=8,
        causal=False,
        time_conditioned=True,
    )
    config = TrainConfig(model=model, num_positions=2, batch_size=2)
    examples = array_examples(Batch(np.zeros((4, 2), int), np.ones((4, 2), bool)), 2)
    task = uniform_task(transformer(model), end=0.9)
    run, results = make_sweep([config], examples, LogConfig(), make_mesh(1), task=task)
    assert [one.finished for one in results(run.init())] == [False]
    assert int(make_run(config, examples, LogConfig(), task=task).init().step) == 0
    with pytest.raises(
        ValueError, match=r"`model\.causal` must be True if the objective is autoregressive"
    ):
        task_of(config)
    with pytest.raises(
        ValueError, match=r"`model\.causal` must be False if the objective is masked"
    ):
        grid(PRESETS["small"], {"objective": ["masked"]})
    with pytest.raises(ValueError, match=r"`model\.num_states` must be V"):
        load_config("small-masked", ["model.num_states=null"])


@pytest.fixture
def pieces(tmp_path):
    """A tokenizer.json of 5 tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    words = {word: number for number, word in enumerate(("a", "b", "c", "d", " "))}
    path.write_text(tokenizers.Tokenizer(tokenizers.models.BPE(words, [])).to_str())
    return path


@pytest.mark.parametrize(("name", "num_states"), [("tiny", 6), ("small-masked", 6)])
def test_a_preset_takes_over_the_number_of_tokens(name, num_states, pieces):
    model = load_config(name, ["model.width=96"], tokenizer=pieces).model
    assert (model.num_tokens, model.num_states, model.width) == (5, num_states, 96)
    given = ["model.num_tokens=7", "model.num_states=8"]
    assert load_config(name, given, tokenizer=pieces).model.num_tokens == 7


def test_both_sizes_that_a_tokenizer_asks_for_are_named_at_once(pieces):
    message = (
        "must be 5, as in the tokenizer, and `model.num_states` must be 6; got model.num_tokens = "
        "256"
    )
    with pytest.raises(ValueError, match=message):
        tokenizer_of(PRESETS["tiny"], pieces)
