"""The command answer: trained members answer questions about pictures, routed by picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dfm_jax.cli.arguments import KeepBuffers, RunFolder

if TYPE_CHECKING:
    from dfm_jax.scoring import Question
    from dfm_jax.training.questions import PictureQuestion


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Answer questions about pictures with a member of a run, or with its experts.

    The most likely token is taken again and again, until the token that ends an answer. With
    several experts, --partition says which pictures are whose: with the route top-1 the expert of
    the nearest centroid answers; with soft, all experts answer together, weighted by
    softmax(T cos); with bayes, these weights are moved by every token of the answer.

    Questions are JSONL of `question_id`, `text` and `image`; the answers are JSONL of `question_id`
    and `text`, which `score` reads.

    For example:

        python -m dfm_jax answer --run run --expert dense --questions q.jsonl --images photos
        --tokenizer llava --out dense.jsonl

        python -m dfm_jax answer --run run --questions q.jsonl --images photos --partition parts
        --clip clip --route soft --tokenizer llava --out experts.jsonl
    """

    folder: RunFolder
    """The folder of the run."""
    questions: Path
    """The questions: JSONL of `question_id`, `text` (or `question`) and `image`."""
    out: Path
    """The file of the answers."""
    tokenizer: Path
    """The tokenizer of the run: a tokenizer.json, or the Hugging Face folder that holds it."""
    images: Path | None = None
    """The folder to which the paths in `image` are relative."""
    expert: int | Literal["dense"] | None = None
    """The member that answers; without it, all experts of the run do."""
    partition: Path | None = None
    """The folder that `partition` wrote; it is needed if several experts answer."""
    clip: str | None = None
    """The Hugging Face folder of the CLIP that made the features of the partition, if one did."""
    route: Literal["top-1", "soft", "bayes"] = "top-1"
    """How experts answer together."""
    sharpness: float | Literal["fitted"] = 21.8
    """The T of the routes soft and bayes: a number, or the one that `partition` fitted to the rows
    of its experts."""
    max_new: int = 64
    """The largest number of tokens of an answer."""
    batch_size: int = 8
    """The number of questions that are answered at once."""
    submission: Path | None = None
    """A file for the answers in the form that the benchmark's own evaluation takes; of mme a new
    folder."""
    benchmark: str | None = None
    """The benchmark of that form, such as vqa, gqa or docvqa. For mme, the questions must also have
    `category` and `answer`, which stand in its form."""
    cache: Path | None = None
    """A folder that keeps the pixels and features of pictures; by default one beside --out."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint of a member to read."""
    keep_buffers: KeepBuffers = True

    def run(self) -> int:
        """Write the answers, and say how many there are."""
        import numpy as np

        from dfm_jax.checks import require
        from dfm_jax.data.pixels import PixelStore
        from dfm_jax.models.pretrained import read_tokenizer_json
        from dfm_jax.scoring import BENCHMARKS
        from dfm_jax.training.evaluation import load_member
        from dfm_jax.training.members import member_folder
        from dfm_jax.training.questions import (
            answer_questions,
            read_picture_questions,
            write_answers,
        )

        rule = "`benchmark` must be given if `submission` is, and only then"
        both = (self.submission is None) == (self.benchmark is None)
        require(both, rule, self.benchmark)
        rule = f"`benchmark` must be one of {', '.join(BENCHMARKS)}"
        require(self.benchmark in (None, *BENCHMARKS), rule, self.benchmark)
        questions = read_picture_questions(self.questions, self.images)
        truths = self._truths(questions)
        if self.expert is None:
            members = self._experts()
        else:
            number = None if self.expert == "dense" else self.expert
            members = [member_folder(self.folder, number)]
        trained = [load_member(member, best=self.checkpoint == "best") for member in members]
        config = trained[0].config
        same = [(one.config.model, one.config.pictures) for one in trained]
        names = [member.name for member in members]
        rule = "All experts must have the same network and read pictures in the same way"
        require(all(one == same[0] for one in same), rule, names, name="members")
        rule = f"`pictures` of the config of {names[0]} must be given, because it reads none"
        require(config.pictures is not None, rule, config.pictures)
        assert config.pictures is not None
        kept = self.out.with_name(f"{self.out.name}.kept") if self.cache is None else self.cache
        log_weights = None
        if len(members) > 1:
            log_weights = self._log_weights([q.picture for q in questions], len(members), kept)
        states = [one.state for one in trained]
        answered = answer_questions(
            config,
            [state.params if state.ema is None else state.ema for state in states],
            questions,
            read_tokenizer_json(_tokenizer_json(self.tokenizer)),
            PixelStore(kept / "pixels", config.pictures.processor),
            log_weights=log_weights,
            route=self.route,
            max_new=self.max_new,
            batch_size=self.batch_size,
        )
        write_answers(self.out, questions, answered)
        self._submit(truths, questions, answered.texts)
        whole = int(np.sum(answered.answers.stopped))
        print(f"{self.out}: {len(questions):,} answers, of which {whole:,} came to their end.")
        counts = np.bincount(answered.answers.expert[answered.answers.expert >= 0])
        if len(members) > 1 and counts.size:
            print("  ".join(f"expert {k}: {count:,}" for k, count in enumerate(counts)))
        return 0

    def _truths(self, questions: "list[PictureQuestion]") -> "list[Question]":
        """The truths that MME's form needs, read and checked before anything is computed."""
        from dfm_jax.checks import require
        from dfm_jax.scoring import mme_files, read_questions

        if self.submission is None or self.benchmark != "mme":
            return []
        rule = "`submission` must not exist yet if the benchmark is mme, because it is a folder"
        require(not self.submission.exists(), rule, self.submission)
        truths = read_questions(self.questions, "mme")
        mme_files(truths, [question.text for question in questions], [""] * len(truths))
        return truths

    def _submit(
        self, truths: "list[Question]", questions: "list[PictureQuestion]", texts: list[str]
    ) -> None:
        from dfm_jax.data.conversations import PICTURE
        from dfm_jax.durable import write_file
        from dfm_jax.scoring import submission, write_mme_folder

        if self.submission is None or self.benchmark is None:
            return
        if self.benchmark == "mme":
            asked = [question.text.replace(PICTURE, "") for question in questions]
            write_mme_folder(self.submission, truths, asked, texts)
        else:
            ids = [question.number for question in questions]
            write_file(self.submission, submission(self.benchmark, ids, texts))

    def _experts(self) -> list[Any]:
        from dfm_jax.checks import require
        from dfm_jax.training.evaluation import members_of

        experts = [m for m in members_of(self.folder) if m.name.startswith("expert_")]
        rule = f"{self.folder} must hold experts, or `expert` must name the member that answers"
        require(bool(experts), rule, self.expert, name="expert")
        return experts

    def _log_weights(self, pictures: list[Path | None], num_experts: int, kept: Path) -> Any:
        """log r_0 of each question; one without a picture has equal weights."""
        import numpy as np

        from dfm_jax.checks import require
        from dfm_jax.partition.route import (
            hard_route,
            picture_router,
            route_features,
            soft_route,
        )
        from dfm_jax.partition.sharpness import recorded_sharpness

        rule = "`partition` must be given if several experts answer"
        require(self.partition is not None, rule, self.partition)
        assert self.partition is not None
        sharpness = self.sharpness
        if sharpness == "fitted" and self.route != "top-1":
            sharpness = recorded_sharpness(self.partition)
            print(f"Sharpness of the route {self.route}: {sharpness:.2f}, fitted.")
        router = picture_router(self.partition, clip=self.clip)
        rule = f"`partition` must have {num_experts} experts, as many as the run"
        require(router.num_experts == num_experts, rule, router.num_experts)
        weights = np.full((len(pictures), num_experts), -np.log(num_experts))
        rows = [row for row, picture in enumerate(pictures) if picture is not None]
        if rows:
            paths = [picture for picture in pictures if picture is not None]
            features = route_features(router, paths, cache=kept / "features")
            if self.route == "top-1":
                chosen = hard_route(router, features)
                weights[rows] = np.where(chosen[:, None] == np.arange(num_experts), 0.0, -np.inf)
            else:
                weights[rows] = soft_route(router, features, float(sharpness))
        return weights


def _tokenizer_json(path: Path) -> Path:
    return path / "tokenizer.json" if path.is_dir() else path
