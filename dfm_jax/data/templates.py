"""Conversations as tokens: what a model reads, which tokens it learns, where its pictures stand.

    LLaVA-1.5    SYSTEM USER: <image>×T⏎question ASSISTANT: answer</s>USER: …
    InternVL2.5  <|im_start|>system⏎SYSTEM<|im_end|>⏎<|im_start|>user⏎<img><IMG_CONTEXT>×T</img>⏎…

Only answers are learnt, each with the token that ends it; a line break after that token is not.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from dfm_jax.checks import check_count, require
from dfm_jax.data.conversations import PICTURE, Conversation
from dfm_jax.models.pretrained import Tokenizer


class Template(NamedTuple):
    """How a conversation becomes one text."""

    name: str
    system: str  # what stands before the first question
    question: tuple[str, str]  # before and after a question
    answer: str  # before an answer
    end: str  # after an answer, and learnt with it: one token
    between: str  # after that
    picture: tuple[str, str, str]  # before the image tokens, one of them, after them
    begins: str | None = None  # a token before everything
    generation: str = ""  # what is cut from `answer` where a model writes: its tokenizer adds it


TEMPLATES = {
    "llava-1.5": Template(
        name="llava-1.5",
        system=(
            "A chat between a curious user and an artificial intelligence assistant. The assistant "
            "gives helpful, detailed, and polite answers to the user's questions. "
        ),
        question=("USER: ", " "),
        answer="ASSISTANT: ",
        end="</s>",
        between="",
        picture=("", "<image>", ""),
        begins="<s>",
        generation=" ",
    ),
    "internvl2.5": Template(
        name="internvl2.5",
        system=(
            "<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、"
            "清华大学及多家合作单位联合开发的多模态大语言模型。<|im_end|>\n"
        ),
        question=("<|im_start|>user\n", "<|im_end|>\n"),
        answer="<|im_start|>assistant\n",
        end="<|im_end|>",
        between="\n",
        picture=("<img>", "<IMG_CONTEXT>", "</img>"),
    ),
}


class Row(NamedTuple):
    """A conversation as tokens."""

    tokens: Int[np.ndarray, " N"]
    learnt: Bool[np.ndarray, " N"]  # whether the loss of predicting this token counts

    @property
    def num_learnt(self) -> int:
        """The number of tokens that are learnt."""
        return int(self.learnt.sum())


def template_named(name: str) -> Template:
    """The template of a name.

    Raises:
        ValueError: if there is none.
    """
    rule = f"`template` must be one of {', '.join(TEMPLATES)}"
    require(name in TEMPLATES, rule, name)
    return TEMPLATES[name]


def template_ids(template: Template, tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of the tokens that a template names.

    Raises:
        ValueError: if the tokenizer lacks one; if it cannot say where in a text a token stands.
    """
    names = (*template.picture, template.end, template.begins or "")
    for name in filter(None, names):
        rule = f"`tokenizer` must have the token {name!r} of the template {template.name}"
        some = sorted(tokenizer.special)[:12]
        require(name in tokenizer.special, rule, some, name="some of its special tokens")
    rule = "`tokenizer` must be one that was read from a folder or a file"
    require(tokenizer.backend is not None, rule, tokenizer.backend, name="tokenizer.backend")
    return {name: tokenizer.special[name] for name in filter(None, names)}


def encode_conversation(
    conversation: Conversation,
    tokenizer: Tokenizer,
    template: Template,
    *,
    image_tokens: Sequence[int],
) -> Row:
    """The tokens of a conversation, with those that are learnt.

    Args:
        conversation: A row of `read_conversations`.
        tokenizer: The model's tokenizer; the text is encoded as a whole.
        template: Its template.
        image_tokens: For each picture, how many image tokens stand for it.

    Raises:
        ValueError: if the numbers of pictures differ; if a text of the row contains a special token
            of the tokenizer, which would be read as that token.
    """
    given = len(image_tokens)
    rule = f"`image_tokens` must hold a number for each picture, of which there are {given}"
    require(len(conversation.pictures) == given, rule, len(conversation.pictures))
    pieces = [(template.system, False)]
    for number, text in enumerate(conversation.said):
        _check_plain(conversation, number, text, tokenizer)
        if number % 2 == 0:
            before, after = template.question
            pieces.append((before + text.strip() + after, False))
        else:
            pieces.append((template.answer, False))
            pieces += [(text.strip() + template.end, True), (template.between, False)]
    return _encoded(pieces, tokenizer, template, image_tokens)


def encode_prompt(
    conversation: Conversation,
    tokenizer: Tokenizer,
    template: Template,
    *,
    image_tokens: Sequence[int],
) -> Int[np.ndarray, " N"]:
    """The tokens before the last answer, after which a model writes its own.

    Raises:
        ValueError: as `encode_conversation`.
    """
    *said, _ = conversation.said
    start = conversation._replace(said=tuple(said))
    pieces = [(template.system, False)]
    for number, text in enumerate(start.said):
        _check_plain(conversation, number, text, tokenizer)
        before, after = template.question if number % 2 == 0 else (template.answer, template.end)
        pieces.append((before + text.strip() + after, False))
        pieces.append((template.between if number % 2 else "", False))
    pieces.append((template.answer.removesuffix(template.generation), False))
    return _encoded(pieces, tokenizer, template, image_tokens).tokens


def _check_plain(row: Conversation, number: int, text: str, tokenizer: Tokenizer) -> None:
    """Check that no text of a row would be read as a special token."""
    rest = text.replace(PICTURE, "")
    found = [name for name in tokenizer.special if name in rest]
    rule = f"Turn {number + 1} of line {row.line} must not contain a special token of the tokenizer"
    require(not found, rule, found, name="tokens in the text")


def _encoded(
    pieces: list[tuple[str, bool]],
    tokenizer: Tokenizer,
    template: Template,
    image_tokens: Sequence[int],
) -> Row:
    """Encode the whole text, and find the learnt parts by where each token stands in it."""
    ids = template_ids(template, tokenizer)
    before, image, after = template.picture
    marked = [(text.replace(PICTURE, before + image + after), learnt) for text, learnt in pieces]
    text = "".join(piece for piece, _ in marked)
    encoding: Any = tokenizer.backend.encode(text, add_special_tokens=False)
    ends = np.array([end for _, end in encoding.offsets], int)
    tokens, learnt = np.array(encoding.ids, np.int32), np.zeros(len(ends), bool)
    at = 0
    for piece, counts in marked:
        if counts:
            # A space before an answer may belong to its first token.
            learnt |= (ends > at) & (ends <= at + len(piece))
        at += len(piece)
    # Each picture has one image token until now.
    places = np.flatnonzero(tokens == ids[image])
    counts = np.ones(len(tokens), int)
    counts[places] = image_tokens
    for count in image_tokens:
        check_count("image_tokens", count)
    tokens, learnt = np.repeat(tokens, counts), np.repeat(learnt, counts)
    if template.begins is not None:
        first = np.array([ids[template.begins]], np.int32)
        tokens, learnt = np.concatenate([first, tokens]), np.concatenate([[False], learnt])
    return Row(tokens, learnt)
