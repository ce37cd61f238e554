"""The names of version 0.1: most still work in 0.2, with a warning; the others say where they went.

`import dfm_jax` installs a finder of modules. It finds a module of `MODULES` under its old name,
and gives the modules that lost a name of `NAMES` or `GONE` a `__getattr__` that knows it. What is
found is the object itself. Type checkers see none of it. Version 0.3 deletes this file, and the two
lines of `__init__` that call it.
"""

import importlib
import importlib.machinery
import sys
import warnings
from functools import partial
from types import ModuleType
from typing import Any

_PACKAGE = "dfm_jax"

# An old module is the new one, or one that finds each of its names: those of `NAMES` where the
# table says, the others in the new module.
MODULES = {
    "cli.gather": "cli.training",
    "cli.members": "cli.launch",
    "cli.options": "cli",
    "clustering.balance": "clustering.assignment",
    "clustering.information": "clustering.metrics",
    "clustering.mini_batch": "clustering.k_means",
    "clustering.prices": "clustering.assignment",
    "clustering.repair": "clustering.assignment",
    "clustering.statistics": "clustering.metrics",
    "data.dealt": "partition.write",
    "data.documents": "data.features",
    "data.encoders": "partition.read",
    "data.folders": "data.manifest",
    "data.npy_file": "data.arrays",
    "data.partition": "partition.write",
    "data.pretrained": "data.packages",
    "data.row_features": "data.features",
    "data.rules": "partition.assign",
    "data.splits": "data.text",
    "data.survey": "partition.read",
    "data.tensors": "data.arrays",
    "data.token_files": "data.tokens",
    "decoders": "interfaces",
    "exact.laws": "exact.distributions",
    "experts": "mixture",
    "fast.blocks": "fast",
    "fast.draws": "fast",
    "fast.losses": "fast",
    "fast.mixtures": "fast",
    "gates": "mixture",
    "gates.cut": "mixture.gates",
    "gates.features": "mixture.gates",
    "gates.running": "mixture.gates",
    "launch.one_line": "launch.jobs",
    "launch.summary": "launch.local",
    "launch.yaml_text": "launch.jobset",
    "models.decoding": "models.trunk",
    "models.denoising": "models.trunk",
    "models.mixture": "mixture",
    "models.network": "interfaces",
    "models.nnx_adapter": "models.adapters",
    "models.perceptron": "models.small_networks",
    "models.pickle_walk": "models.weight_files",
    "models.pretrained.gguf_header": "models.pretrained.gguf_file",
    "models.pretrained.lossless": "models.pretrained.tokenizer",
    "models.pretrained.writing": "models.pretrained.folder",
    "models.safetensors_header": "models.weight_files",
    "models.stacking": "models.trunk",
    "models.tables": "models.small_networks",
    "models.torch_file": "models.weight_files",
    "parallel.centre": "parallel.dense",
    "parallel.mesh": "parallel.independent",
    "parallel.mixing": "mixture.devices",
    "sampling.experts": "mixture.drawing",
    "sampling.one_expert": "mixture.drawing",
    "scoring.yes_no": "scoring.answers",
    "theory.draws": "theory.cases",
    "theory.statements.correctors": "theory.statements.velocities",
    "theory.statements.evidence": "theory.statements.bounds",
    "theory.statements.grids": "theory.statements.bounds",
    "theory.statements.parts": "theory.statements.routing",
    "theory.statements.price": "theory.statements.cost",
    "theory.statements.prompts": "theory.statements.autoregression",
    "theory.statements.router_excess": "theory.statements.decentral",
    "theory.statements.truncation": "theory.statements.routers",
    "training.hosts": "training.distributed",
    "training.measures": "training.metrics",
    "training.reading": "training.batches",
    "training.retention": "training.checkpoint",
    "training.run": "training.fit",
    "training.spreading": "training.distributed",
    "training.terms": "training.losses",
}

NAMES = {
    "boundary.finite_behind_zero": "boundary.finite_at_zero_mass",
    "checks.check_law": "checks.check_distribution",
    "checks.check_log_law": "checks.check_log_distribution",
    "cli.Gather": "cli.MakeEnsemble",
    "cli.gather.Gather": "cli.training.MakeEnsemble",
    "clustering.directions.widened": "boundary.widened",
    "clustering.k_means.Clusters": "clustering.directions.Clusters",
    "clustering.k_means.cosine_scores": "clustering.directions.cosine_scores",
    "clustering.prices.score_spread": "clustering.assignment.score_scale",
    "data.dealt.write_dealt": "partition.write.write_assigned",
    "data.folders.HashedFile": "durable.HashedFile",
    "data.folders.NewFolder": "durable.NewFolder",
    "data.folders.TemporaryError": "durable.TemporaryError",
    "data.folders.file_digest": "durable.file_digest",
    "data.folders.lock": "durable.lock",
    "data.folders.sync_folder": "durable.force_to_disk",
    "data.rules.spread": "partition.assign.assign_at_random",
    "exact.chains.sequence_law": "exact.sequence_probs",
    "exact.checks.check_law": "exact.checks.check_distribution",
    "exact.checks.check_laws": "exact.checks.check_distributions",
    "exact.couplings.data_law": "exact.data_probs",
    "exact.couplings.source_law": "exact.source_probs",
    "exact.data_law": "exact.data_probs",
    "exact.sequence_law": "exact.sequence_probs",
    "exact.source_law": "exact.source_probs",
    "experts.mix_posteriors": "mixture.mix_probs",
    "experts.mix_velocities": "mixture.mix",
    "experts.mixture_log_prob": "mixture.mix_log_probs",
    "fast.generalised_kl": "fast.generalized_kl",
    "fast.losses.generalised_kl": "fast.generalized_kl",
    "fast.mix_log_probs": "mixture.mix_logits",
    "fast.mixtures.mix_log_probs": "mixture.mix_logits",
    "gates.cut.top_k_gate": "mixture.top_experts_gate",
    "gates.top_k_gate": "mixture.top_experts_gate",
    "models.MixtureParams": "mixture.MixtureParams",
    "models.mixture_decoder": "mixture.mixture_decoder",
    "models.mixture_params": "mixture.mixture_params",
    "models.pretrained.llama.llama_params": "models.pretrained.checkpoint_params",
    "models.pretrained.llama.llama_tensors": "models.pretrained.checkpoint_tensors",
    "models.pretrained.llama.tensor_shapes": "models.pretrained.families.tensor_shapes",
    "models.pretrained.llama_params": "models.pretrained.checkpoint_params",
    "models.pretrained.llama_tensors": "models.pretrained.checkpoint_tensors",
    "models.prompt_log_posterior": "mixture.prompt_log_posterior",
    "objectives.decentralised_loss": "objectives.decentralized_loss",
    "objectives.generalised_kl": "objectives.generalized_kl",
    "objectives.generalised_kl_loss": "objectives.generalized_kl_loss",
    "parallel.centre.place_state": "parallel.state_shardings",
    "parallel.centre.spread_step": "parallel.sharded_step",
    "parallel.place_state": "parallel.state_shardings",
    "parallel.spread_step": "parallel.sharded_step",
    "samplers.euler_step_law": "samplers.euler_step_probs",
    "samplers.final_step_law": "samplers.final_step_probs",
    "samplers.mixed_step_law": "mixture.mix_probs",
    "samplers.one_expert_log_prob": "mixture.mix_log_probs",
    "samplers.one_position_step_law": "samplers.one_position_step_probs",
    "sampling.EnsembleParams": "mixture.MixtureDenoiserParams",
    "sampling.MixtureDraw": "mixture.MixtureDraw",
    "sampling.OneExpertSample": "mixture.OneExpertSample",
    "sampling.autoregressive.NO_LAW": "sampling.autoregressive.NO_DISTRIBUTION",
    "sampling.autoregressive.cut_law": "sampling.autoregressive.truncated_probs",
    "sampling.cut_denoiser": "sampling.truncated_denoiser",
    "sampling.denoisers.Denoiser": "interfaces.Denoiser",
    "sampling.denoisers.EnsembleParams": "mixture.MixtureDenoiserParams",
    "sampling.denoisers.HeadedDenoiser": "interfaces.HeadedDenoiser",
    "sampling.denoisers.cut_denoiser": "sampling.truncated_denoiser",
    "sampling.denoisers.ensemble_denoiser": "mixture.mixture_denoiser",
    "sampling.denoisers.log_law": "sampling.denoisers.log_probs",
    "sampling.ensemble_denoiser": "mixture.mixture_denoiser",
    "sampling.euler.euler_coins": "sampling.euler.euler_jump_probs",
    "sampling.jumps.ALIVE": "sampling.jumps.VALID",
    "sampling.sample_mixed_step": "mixture.sample_mixed_step",
    "sampling.sample_mixture_on_table": "mixture.sample_mixture_on_table",
    "sampling.sample_one_expert": "mixture.sample_one_expert",
    "sampling.sample_one_expert_on_table": "mixture.sample_one_expert_on_table",
    "scoring.answers.normalised_answer": "scoring.normalized_answer",
    "scoring.normalised_answer": "scoring.normalized_answer",
    "steps.step_law": "steps.step_probs",
    "theory.fields.clock": "theory.fields.time_and_schedule",
    "theory.statements.accounting.own_laws": "theory.statements.accounting.own_probs",
    "theory.statements.autoregression.laws_on_table": (
        "theory.statements.autoregression.probs_on_table"
    ),
    "theory.statements.autoregression.prompted_laws": (
        "theory.statements.autoregression.prompted_probs"
    ),
    "theory.statements.bounds.one_clock": "theory.statements.bounds.one_exponent",
    "theory.statements.decentral.decentralised_minimiser": (
        "theory.statements.decentral.decentralized_minimizer"
    ),
    "theory.statements.decentral.router_minimiser": "theory.statements.decentral.router_minimizer",
    "theory.statements.evidence.generalised_kl": "theory.statements.bounds.generalized_kl",
    "theory.statements.objectives.state_data_law": "theory.statements.objectives.state_data_probs",
    "theory.statements.paths.conditional_path_factorises": (
        "theory.statements.paths.conditional_path_factorizes"
    ),
    "theory.statements.paths.token_law": "theory.statements.paths.token_probs",
    "theory.statements.price.price_of_parallelism": "theory.statements.cost.cost_of_parallelism",
    "theory.statements.rates.marginalised": "theory.statements.rates.marginalized",
    "theory.statements.routers.token_wise_law": "theory.statements.routers.token_wise_probs",
    "theory.statements.steps.laws_of": "theory.statements.steps.probs_of",
    "theory.statements.steps.step_laws": "theory.statements.steps.step_probs",
    "theory.statements.velocities.laws": "theory.statements.velocities.token_probs",
    "theory.statements.velocities.marginalise": "theory.statements.velocities.marginalize",
    "training.config.OptimiserConfig": "training.config.OptimizerConfig",
    "training.config.Watch": "training.config.LogConfig",
    "training.digests.described": "training.digests.array_spec",
    "training.digests.force_to_disk": "durable.force_to_disk",
    "training.ensemble.gather": "training.ensemble.make_ensemble",
    "training.evaluation.DocumentLosses": "training.examples.DocumentLosses",
    "training.evaluation.Windows": "training.examples.HeldOut",
    "training.evaluation.judged_windows": "training.examples.document_rows",
    "training.hosts.Onlooker": "training.distributed.NullLogger",
    "training.measures.Measure": "interfaces.Measure",
    "training.members.MemberData": "training.examples.MemberData",
    "training.router.router_log_law": "training.router.router_log_probs",
    "training.spreading.Spread": "training.distributed.Layout",
    "training.spreading.spread_evaluation": "training.distributed.sharded_evaluation",
    "training.spreading.spread_init": "training.distributed.sharded_init",
    "training.spreading.spread_update": "training.distributed.sharded_update",
    "training.state.make_optimiser": "training.state.make_optimizer",
    "training.terms.Terms": "training.losses.Losses",
    "training.terms.TermsOf": "training.losses.LossFunction",
    "training.terms.answer_terms": "training.losses.answer_losses",
    "training.terms.masked_terms": "training.losses.masked_losses",
    "training.terms.next_token_terms": "training.losses.next_token_losses",
    "training.terms.uniform_terms": "training.losses.uniform_losses",
    "training.texts.Speaker": "training.texts.Generator",
    "training.texts.ensemble_speaker": "training.texts.ensemble_generator",
    "training.texts.member_speaker": "training.texts.member_generator",
    "velocities.expectation": "mixture.mix",
}

# Where another name would do something else, or nothing: what to write instead.
_STUDIES = "only studies read it, as experiments.lib.{} of a clone"
_POSITIONAL = (
    "give `models.Network` a table as its parameters, and an `apply` that returns its rows"
)
GONE = {
    **{
        f"data.{module}": _STUDIES.format(module)
        for module in ("easy_vqa", "emoji", "lettered", "scene_questions")
    },
    **{
        f"data.{name}": _STUDIES.format(f"emoji.{name}")
        for name in (
            *("Emoji", "PlacedEmoji", "Scene", "Scenes"),
            *("emoji_image", "emoji_scenes", "load_emoji"),
        )
    },
    **{
        f"{module}.load_{name}": _STUDIES.format(f"domains.load_{name}")
        for name in ("abc", "bbc", "kjv", "shakespeare", "stdlib")
        for module in ("data", "data.text")
    },
    **{
        f"{module}.{name}": _POSITIONAL
        for name in ("positional", "statewise")
        for module in ("models", "models.tables")
    },
    **{
        f"{module}.mix_over_devices": (
            "the prior comes first, dfm_jax.mixture.mix_over_devices(log_prior, log_p_t, …)"
        )
        for module in ("parallel", "parallel.mixing")
    },
    **{
        f"{module}.box_match": (
            'compare dfm_jax.scoring.overlap of two boxes with 0.5, or ask score("refcoco", …)'
        )
        for module in ("scoring", "scoring.boxes")
    },
    "data.packages.pip_command": (
        "it takes several packages, dfm_jax.data.packages.pip_commands([package], no_deps=…)"
    ),
    "experts.expert_posterior": (
        "the prior comes first, dfm_jax.mixture.expert_posterior(log_prior, log_p_t)"
    ),
    "fast.blocks.rows_in_block": "dfm_jax.fast chooses its blocks itself",
    "samplers.shared_expert_log_prob": (
        "the weights come first, dfm_jax.mixture.shared_expert_log_prob(log_weights, x_next, …)"
    ),
    "sampling.experts.check_stacked": "dfm_jax.mixture checks its parameters itself",
    "sampling.experts.one_by_one": "dfm_jax.mixture reads its tables itself",
    "training.measures.BOUND": "dfm_jax.training.metrics.metric_name(measure) names the metric",
    "training.measures.EXACT": "dfm_jax.training.metrics.metric_name(measure) names the metric",
    "training.measures.measure_of": "read dfm_jax.training.tasks.task_of(config).measure",
    "training.measures.metric_name": (
        "dfm_jax.training.metrics.metric_name(task_of(config).measure) takes a measure"
    ),
    "training.members.network_and_terms": (
        "dfm_jax.training.tasks.task_of(config) has both, as init and losses"
    ),
    "training.run.windows_of": "read dfm_jax.training.examples.examples_of(data, config).batches",
}

_RENAMED = {*MODULES, *NAMES, *GONE}
_WITH_OLD_NAMES = {name.rpartition(".")[0] for name in _RENAMED}  # "" is `dfm_jax` itself


def install() -> None:
    """Let the imports of this process find the old names."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def attribute(module: str, name: str) -> Any:
    """What `name` of 0.1 stands for, in a module by its name below `dfm_jax`.

    Raises:
        AttributeError: if it is none, or stands for nothing now.
    """
    old = f"{module}.{name}".lstrip(".")
    if old in GONE:
        raise AttributeError(_departure(old))
    if old in MODULES:
        return importlib.import_module(f"{_PACKAGE}.{old}")
    new = NAMES.get(old)
    if new is None and module in MODULES and not name.startswith("_"):
        new = f"{MODULES[module]}.{name}"
    if new is None:
        whole = f"{_PACKAGE}.{module}".rstrip(".")
        raise AttributeError(f"module {whole!r} has no attribute {name!r}")
    home, _, known = new.rpartition(".")
    found = getattr(importlib.import_module(f"{_PACKAGE}.{home}"), known)
    _warn(old, new)
    return found


class _Finder:
    """Finds old modules, and lets those that lost a name look it up."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        package, _, name = fullname.partition(".")
        if package != _PACKAGE or not name:
            return None
        if name in GONE:
            raise ImportError(_departure(name), name=fullname)
        if name in MODULES:
            loader: Any = _OldModule()
            return importlib.machinery.ModuleSpec(fullname, loader, is_package=True)
        if name not in _WITH_OLD_NAMES:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = partial(_run, name, spec.loader.exec_module)
        return spec


class _OldModule:
    """Makes the module of an old name."""

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__.partition(".")[2]
        new = MODULES[old]
        _warn(old, new)
        if old in _WITH_OLD_NAMES:
            module.__getattr__ = partial(attribute, old)
        else:
            sys.modules[module.__name__] = importlib.import_module(f"{_PACKAGE}.{new}")


def _run(name: str, run: Any, module: ModuleType) -> None:
    module.__getattr__ = partial(attribute, name)
    run(module)
    if not hasattr(module, "__path__"):  # of `fast`, no longer a package, nobody asks a finder
        for old in MODULES:
            if old.startswith(f"{name}."):
                inner = sys.modules[f"{_PACKAGE}.{old}"] = ModuleType(f"{_PACKAGE}.{old}")
                inner.__getattr__ = partial(attribute, old)


def _departure(old: str) -> str:
    return f"`{_PACKAGE}.{old}` is not in version 0.2: {GONE[old]}."


def _warn(old: str, new: str) -> None:
    """As of the line that wrote the old name, however many frames of imports lie between."""
    frame = sys._getframe(1)
    between = {_PACKAGE, __name__, "importlib", "importlib._bootstrap"}
    while frame.f_back and frame.f_globals.get("__name__") in between:
        frame = frame.f_back
    warnings.warn_explicit(
        f"The name is `{_PACKAGE}.{new}` since version 0.2; got `{_PACKAGE}.{old}`, which "
        f"version 0.3 no longer has.",
        DeprecationWarning,
        filename=frame.f_code.co_filename,
        lineno=frame.f_lineno,
        module=frame.f_globals.get("__name__", "__main__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )
