"""Conversations as tokens: the text of each template, what is learnt, where pictures stand."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers

from dfm_jax.data.conversations import Conversation
from dfm_jax.data.templates import (
    TEMPLATES,
    encode_conversation,
    encode_prompt,
    template_named,
)
from dfm_jax.models.pretrained import read_tokenizer_json

LLAVA, INTERN = TEMPLATES["llava-1.5"], TEMPLATES["internvl2.5"]
TEXTS = ["USER: What is red ? ASSISTANT: a red box", "system user assistant What is blue \n yes no"]
TWO = Conversation(
    line=1,
    name="a",
    pictures=(Path("a.png"), Path("b.png")),
    said=("Is <image> like\n<image>?", "no", "And red ?", " a red box "),
)
ALONE = Conversation(line=2, name="b", pictures=(), said=("What is blue?", "yes"))


def trained(path, kind):
    """A small tokenizer with the special tokens of both templates."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=kind == "metaspace"))
    if kind == "metaspace":  # as Llama has it
        model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
        model.decoder = tokenizers.decoders.Metaspace(prepend_scheme="first")
        letters = sorted(set("".join(TEXTS) + INTERN.system + LLAVA.system + "?Islike▁"))
    else:  # as Qwen has it
        model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = tokenizers.decoders.ByteLevel()
        letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>", "<img>", "</img>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*special, "<IMG_CONTEXT>"], initial_alphabet=letters
    )
    model.train_from_iterator(TEXTS * 9, trainer)
    model.save(str(path / "tokenizer.json"))
    return read_tokenizer_json(path / "tokenizer.json")


@pytest.fixture(params=["metaspace", "bytes"])
def tokenizer(request, tmp_path):
    return trained(tmp_path, request.param)


def runs(row, tokenizer):
    """The learnt stretches, as texts."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.learnt, [0]])))
    return [tokenizer.decode(row.tokens[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def test_a_llava_row_learns_its_answers_and_their_end(tokenizer):
    row = encode_conversation(TWO, tokenizer, LLAVA, image_tokens=[3, 2])
    assert [text.strip() for text in runs(row, tokenizer)] == ["no</s>", "a red box</s>"]
    text = tokenizer.decode(row.tokens)
    assert text.replace("<s> ", "<s>") == (
        f"<s>{LLAVA.system}USER: Is <image><image><image> like\n<image><image>? ASSISTANT: no</s>"
        "USER: And red ? ASSISTANT: a red box</s>"
    )


def test_an_internvl_row_learns_its_answers_and_their_end(tokenizer):
    row = encode_conversation(TWO, tokenizer, INTERN, image_tokens=[1, 2])
    assert [text.strip() for text in runs(row, tokenizer)] == [
        "no<|im_end|>",
        "a red box<|im_end|>",
    ]
    assert tokenizer.decode(row.tokens).strip() == (
        f"{INTERN.system}<|im_start|>user\nIs <img><IMG_CONTEXT></img> like\n"
        "<img><IMG_CONTEXT><IMG_CONTEXT></img>?<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
        "<|im_start|>user\nAnd red ?<|im_end|>\n<|im_start|>assistant\na red box<|im_end|>"
    )


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_prompt_is_the_row_up_to_its_last_answer(template, tokenizer):
    for conversation, counts in ((TWO, [3, 2]), (ALONE, [])):
        row = encode_conversation(conversation, tokenizer, template, image_tokens=counts)
        prompt = encode_prompt(conversation, tokenizer, template, image_tokens=counts)
        begun = np.flatnonzero(np.diff(np.concatenate([[0], row.learnt])) > 0)[-1]
        np.testing.assert_array_equal(prompt, row.tokens[:begun])


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_row_without_a_picture_has_no_image_token(template, tokenizer):
    row = encode_conversation(ALONE, tokenizer, template, image_tokens=[])
    assert tokenizer.special[template.picture[1]] not in row.tokens
    assert row.num_learnt > 1


def test_what_would_be_read_as_something_else_is_refused(tokenizer):
    row = ALONE._replace(said=("What?", "yes</s>no"))
    with pytest.raises(
        ValueError, match=r"Turn 2 of line 2 must not contain a special token .*</s>"
    ):
        encode_conversation(row, tokenizer, LLAVA, image_tokens=[])
    with pytest.raises(ValueError, match="`image_tokens` must hold a number for each picture"):
        encode_conversation(TWO, tokenizer, LLAVA, image_tokens=[3])
    with pytest.raises(ValueError, match=r"`template` must be one of llava-1\.5, internvl2\.5"):
        template_named("llava-2")
    special = {name: i for name, i in tokenizer.special.items() if name != "<IMG_CONTEXT>"}
    with pytest.raises(ValueError, match="must have the token '<IMG_CONTEXT>' of the template"):
        encode_conversation(ALONE, tokenizer._replace(special=special), INTERN, image_tokens=[])
