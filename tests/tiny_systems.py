"""A tiny LLaVA and a tiny InternVL: a folder to start from, conversations, a member's own folder.

Free of pytest, because `parity.exported` runs it beside the peers, too.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import tokenizers

from dfm_jax import cli
from dfm_jax.data.packages import pillow
from dfm_jax.data.processors import PictureProcessor, processor_settings
from dfm_jax.models import TransformerConfig
from dfm_jax.models.multimodal import MultimodalConfig, VisionConfig, multimodal
from dfm_jax.models.pretrained import read_tokenizer_json, write_folder
from dfm_jax.training.config import OptimizerConfig, PicturesConfig, TrainConfig, to_json

SPECIAL = ("<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>", "<img>", "</img>")
SPECIAL += ("<IMG_CONTEXT>",)
COLORS = ("red", "green", "blue")
_SIZES = {"width": 32, "num_heads": 4, "ffn_width": 48}
_VISION = _SIZES | {"patch_size": 8, "num_layers": 3}
_TEXT = TransformerConfig(
    num_tokens=256 + len(SPECIAL), num_layers=2, num_kv_heads=2, tied=False, **_SIZES
)
SYSTEMS = {
    "llava": MultimodalConfig(
        text=_TEXT,
        vision=VisionConfig(image_size=24, **_VISION),
        image_token=SPECIAL.index("<image>"),
    ),
    "internvl": MultimodalConfig(
        text=dataclasses.replace(_TEXT, qkv_bias=True, rope_base=1e6, norm_epsilon=1e-6),
        vision=VisionConfig(
            image_size=32,
            activation="gelu",
            norm_epsilon=1e-6,
            input_norm=False,
            patch_bias=True,
            layer_scale=True,
            pooled_norm=False,
            **_VISION,
        ),
        image_token=SPECIAL.index("<IMG_CONTEXT>"),
        feature_layer=-1,
        shuffle=2,
        projector_norm=True,
    ),
}
TEMPLATES = {"llava": "llava-1.5", "internvl": "internvl2.5"}
# What is trained: all; or not the tower; or adapters of the text, and the projector.
CHANGES = {
    "all": (),
    "a frozen tower": ('optimizer.freeze=["vision_tower"]',),
    "adapters": (
        "lora.rank=4",
        'lora.targets=["language_model"]',
        'lora.train=["multi_modal_projector"]',
    ),
}


def start_folder(path: Path, kind: str) -> Path:
    """A folder of drawn weights, with a tokenizer of bytes and the settings of a processor."""
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    cut = tokenizers.Tokenizer(tokenizers.models.BPE())
    cut.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    cut.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=_TEXT.num_tokens,
        special_tokens=list(SPECIAL),
        initial_alphabet=letters,
        show_progress=False,
    )
    cut.train_from_iterator([], trainer)
    file = path.with_name(f"{path.name}_tokenizer.json")
    cut.save(str(file))
    system = SYSTEMS[kind]
    params = multimodal(system).init(jax.random.key(0))
    write_folder(path, system, params, tokenizer=read_tokenizer_json(file))
    settings = processor_settings(config_of(kind).pictures.processor)
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return path


def conversations(folder: Path) -> Path:
    """Six pictures of three colors, and one question about each."""
    (folder / "images").mkdir(parents=True)
    random, rows = np.random.default_rng(0), []
    for number in range(6):
        values = random.integers(0, 60, (20, 24, 3), np.uint8)
        values[..., number % 3] += 150
        pillow().fromarray(values).save(folder / "images" / f"{number}.png")
        question = {"from": "human", "value": "<image>\nWhat color?"}
        answer = {"from": "gpt", "value": COLORS[number % 3]}
        rows.append({"image": f"{number}.png", "conversations": [question, answer]})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(kind: str) -> TrainConfig:
    """Three updates of a member."""
    system = SYSTEMS[kind]
    names = {item.name for item in dataclasses.fields(system)} - {"text"}
    pictures = PicturesConfig(
        processor=PictureProcessor(size=system.vision.image_size, fit="stretch"),
        template=TEMPLATES[kind],
        **{name: getattr(system, name) for name in names},
    )
    return TrainConfig(
        model=system.text,
        pictures=pictures,
        optimizer=OptimizerConfig(learning_rate=0.01, warmup_steps=0),
        num_steps=3,
        batch_size=2,
        num_positions=320,
        held_out=0.0,
    )


def exported(work: Path, kind: str, trained: str) -> tuple[Path, Path]:
    """(the run, the folder of its dense model), both in `work`, after `train` and `export`."""
    start, rows = start_folder(work / kind, kind), conversations(work / "data")
    config, run, out = work / "config.json", work / "run", work / "out"
    config.write_text(json.dumps(to_json(config_of(kind))))
    words = ["train", "--config", str(config), "--init", str(start), "--data", str(rows)]
    words += ["--run", str(run)]
    words += ["--set", *CHANGES[trained]] if CHANGES[trained] else []
    assert cli.main(words) == 0
    words = ["export", "--run", str(run), "--expert", "dense", "--out", str(out)]
    assert cli.main(words) == 0
    return run, out


def prompt(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [N], normalized pictures [2, H, W, 3]): two pictures in one text."""
    system = SYSTEMS[kind]
    image, size = [system.image_token] * system.features_per_picture, system.vision.image_size
    tokens = np.array([40, 41, *image, 50, 51, 52, *image, 60, 61])
    return tokens, np.random.default_rng(2).standard_normal((2, size, size, 3))
