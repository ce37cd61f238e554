"""The peer of `multimodal_speed`: the same LLaVA in Hugging Face's transformers, by its public API.

    PYTHON -P experiments/systems/multimodal_speed/torch_side.py FOLDER ATTENTION THREADS

`multimodal_speed` runs it in an environment with PyTorch and transformers; ATTENTION is "sdpa" or
"eager". It reads commands as lines of JSON, and answers each with one line.
"""

import itertools
import json
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np

os.environ["HF_HUB_OFFLINE"] = "1"
import torch  # pyright: ignore[reportMissingImports]
from transformers import (  # pyright: ignore[reportMissingImports]
    LlavaForConditionalGeneration,
)

# -P: its own folder is not searched for modules, and the checkout is.
sys.path.append(str(Path(__file__).parents[3]))
from experiments.systems.benchmarks.serving import Case, serve


class Rows:
    """The rows as tensors, and the pictures as the tower reads them."""

    def __init__(self, arrays, batch_size):
        pictures = arrays["table"][arrays["pixels"], np.arange(3)]
        self.pictures = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
        self.tokens = torch.from_numpy(arrays["tokens"]).long()
        self.prompts, self.lengths = arrays["prompts"], arrays["lengths"]
        self.numbers, self.batch_size = itertools.count(), batch_size

    def next_batch(self):
        """The places of the rows of the next batch."""
        first = next(self.numbers) * self.batch_size % len(self.tokens)
        return slice(first, first + self.batch_size)

    def conversations(self):
        """The next batch to train on, as long as its longest row."""
        places = self.next_batch()
        width = int(self.lengths[places].max())
        at = torch.arange(width)[None]
        prompts = torch.from_numpy(self.prompts[places])[:, None]
        tokens = self.tokens[places, :width]
        mask = at < torch.from_numpy(self.lengths[places])[:, None]
        labels = torch.where((at >= prompts) & mask, tokens, -100)
        return {
            "input_ids": tokens,
            "attention_mask": mask.long(),
            "labels": labels,
            "pixel_values": self.pictures[places],
        }

    def questions(self):
        """The next batch to answer, padded on the left to its longest prompt."""
        places = self.next_batch()
        width = int(self.prompts[places].max())
        tokens = torch.zeros(self.batch_size, width, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for i, length in enumerate(self.prompts[places].tolist()):
            tokens[i, width - length :] = self.tokens[places][i, :length]
            mask[i, width - length :] = 1
        return {
            "input_ids": tokens,
            "attention_mask": mask,
            "pixel_values": self.pictures[places],
        }


def prepare(folder, attention, workload, size, arrays):
    """The work with its data; `size` has the batch and the tokens of an answer."""
    work = json.loads((folder / "work.json").read_text())
    model = LlavaForConditionalGeneration.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation=attention
    )
    rows = Rows(arrays, size["batch"])
    if workload in work["freeze"]:
        return {attention: updates(model, rows, work["optimizer"], work["freeze"][workload])}
    return {attention: answers(model, rows, size["new"])}


def updates(model, rows, options, freeze):
    """Forward, backward, clip and AdamW."""
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name.split(".") for part in freeze))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decays = [parameter for parameter in parameters if parameter.ndim >= 2]
    others = [parameter for parameter in parameters if parameter.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decays}, {"params": others, "weight_decay": 0.0}],
        lr=options["learning_rate"],
        betas=(options["b1"], options["b2"]),
        eps=options["epsilon"],
        weight_decay=options["weight_decay"],
        fused=True,
    )

    def update():
        loss = model(**rows.conversations(), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, options["max_norm"])
        optimizer.step()
        optimizer.zero_grad()  # no gradient is alive between two steps, as on our side
        return loss.item()

    return Case(update, float)


def answers(model, rows, num_new):
    """Greedy answers with a cache; no image token is drawn."""
    model.eval()

    def drawn():
        asked = rows.questions()
        with torch.inference_mode():
            found = model.generate(
                **asked,
                do_sample=False,
                max_new_tokens=num_new,
                use_cache=True,
                pad_token_id=0,
                suppress_tokens=[model.config.image_token_id],
            )
        return found[:, asked["input_ids"].shape[1] :]

    return Case(drawn, lambda found: found.tolist())


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    serve(partial(prepare, Path(sys.argv[1]), sys.argv[2]))
