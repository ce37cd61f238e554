"""Text, emoji, features and weights, from installed packages or a user's files, never fetched."""

from dfm_jax.data.documents import (
    DocumentEncoder,
    Documents,
    document_encoder,
    encode_documents,
    fit_documents,
)
from dfm_jax.data.emoji import (
    Emoji,
    PlacedEmoji,
    Scene,
    Scenes,
    emoji_image,
    emoji_scenes,
    load_emoji,
)
from dfm_jax.data.features import (
    Encoded,
    image_features,
    image_grid_features,
    load_efficientnet_lite0,
    pixel_features,
)
from dfm_jax.data.packages import MissingDataError
from dfm_jax.data.pretrained import LanguageModel, load_smollm2
from dfm_jax.data.row_features import RowFeatures, read_features
from dfm_jax.data.splits import Removed, Split, split_documents, split_sizes
from dfm_jax.data.text import (
    Corpus,
    Document,
    load_abc,
    load_bbc,
    load_folder,
    load_kjv,
    load_shakespeare,
    load_stdlib,
)

__all__ = [
    "Corpus",
    "Document",
    "DocumentEncoder",
    "Documents",
    "Emoji",
    "Encoded",
    "LanguageModel",
    "MissingDataError",
    "PlacedEmoji",
    "Removed",
    "RowFeatures",
    "Scene",
    "Scenes",
    "Split",
    "document_encoder",
    "emoji_image",
    "emoji_scenes",
    "encode_documents",
    "fit_documents",
    "image_features",
    "image_grid_features",
    "load_abc",
    "load_bbc",
    "load_efficientnet_lite0",
    "load_emoji",
    "load_folder",
    "load_kjv",
    "load_shakespeare",
    "load_smollm2",
    "load_stdlib",
    "pixel_features",
    "read_features",
    "split_documents",
    "split_sizes",
]
