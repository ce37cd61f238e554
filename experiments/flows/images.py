"""Small pictures as sequences: scikit-learn's digits, split once and partitioned.

1,797 images of 8 × 8 in 17 gray levels are sequences of N = 64 tokens with V = 17. A part is a
function of the whole image (clusters) or random; the same rule labels held-out images.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from sklearn.datasets import load_digits

from dfm_jax.checks import check_count, require
from dfm_jax.clustering import nearest_cluster, spherical_k_means

NUM_TOKENS = 17  # V, gray levels
SIDE = 8
Kind = Literal["cluster", "random"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Rows of tokens, for training and for evaluation."""

    train: np.ndarray  # [R, N]
    test: np.ndarray  # [D, N]

    @property
    def digest(self) -> str:
        """A digest of every token, and of which rows are held out."""
        content = hashlib.sha256(repr((self.train.shape, self.test.shape)).encode())
        for rows in (self.train, self.test):
            content.update(np.ascontiguousarray(rows, np.int32).tobytes())
        return content.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """The part of each image, by split."""

    kind: Kind
    num_experts: int
    train: np.ndarray  # [R]
    test: np.ndarray  # [D]

    @property
    def name(self) -> str:
        """The name as it is written: `cluster:5`."""
        return f"{self.kind}:{self.num_experts}"

    @property
    def weights(self) -> np.ndarray:
        """The weights w_k, which are shares of training images, and so of training tokens: [K]."""
        return np.bincount(self.train, minlength=self.num_experts) / len(self.train)


def digits(num_train: int, num_test: int) -> Images:
    """The first `num_train` and the next `num_test` of the digits, in an order drawn once.

    Raises:
        ValueError: if there are fewer digits than that.
    """
    pixels, _ = load_digits(return_X_y=True)
    rows = np.asarray(pixels).astype(np.int32)
    check_count("num_train", num_train)
    check_count("num_test", num_test, at_least=2)
    rule = f"`num_train + num_test` must be at most {len(rows)}, the number of images"
    require(num_train + num_test <= len(rows), rule, num_train + num_test)
    order = np.random.default_rng(0).permutation(len(rows))[: num_train + num_test]
    return Images(train=rows[order[:num_train]], test=rows[order[num_train:]])


def partitioned(images: Images, kind: Kind, num_experts: int) -> Parts:
    """A partition by balanced spherical k-means of pixels, or at random with equal sizes.

    Raises:
        ValueError: if there are fewer training images than experts.
    """
    check_count("num_experts", num_experts, at_least=2, at_most=len(images.train))
    if kind == "random":
        rng = np.random.default_rng(1)
        assigned = rng.permutation(np.arange(len(images.train)) % num_experts)
        drawn = rng.integers(num_experts, size=len(images.test))
        return Parts(kind=kind, num_experts=num_experts, train=assigned, test=drawn)
    pixels = images.train.astype(np.float32)
    options = {"balance": "rows", "num_restarts": 4}
    found = spherical_k_means(jax.random.key(0), pixels, num_experts, **options)
    others = nearest_cluster(images.test.astype(np.float32), found.clusters)
    return Parts(
        kind=kind,
        num_experts=num_experts,
        train=np.asarray(found.labels),
        test=np.asarray(others),
    )
