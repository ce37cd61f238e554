"""Texts, pictures, features and weights, from installed packages or a user's files.

Nothing is fetched from a network.
"""

from dfm_jax.data.features import DocumentEncoder as DocumentEncoder
from dfm_jax.data.features import Documents as Documents
from dfm_jax.data.features import Encoded as Encoded
from dfm_jax.data.features import RowFeatures as RowFeatures
from dfm_jax.data.features import document_encoder as document_encoder
from dfm_jax.data.features import encode_documents as encode_documents
from dfm_jax.data.features import fit_documents as fit_documents
from dfm_jax.data.features import image_features as image_features
from dfm_jax.data.features import image_grid_features as image_grid_features
from dfm_jax.data.features import load_efficientnet_lite0 as load_efficientnet_lite0
from dfm_jax.data.features import pixel_features as pixel_features
from dfm_jax.data.features import read_features as read_features
from dfm_jax.data.packages import LanguageModel as LanguageModel
from dfm_jax.data.packages import MissingDataError as MissingDataError
from dfm_jax.data.packages import load_smollm2 as load_smollm2
from dfm_jax.data.processors import PictureProcessor as PictureProcessor
from dfm_jax.data.processors import processor_settings as processor_settings
from dfm_jax.data.processors import read_processor as read_processor
from dfm_jax.data.text import Corpus as Corpus
from dfm_jax.data.text import Document as Document
from dfm_jax.data.text import Removed as Removed
from dfm_jax.data.text import Split as Split
from dfm_jax.data.text import load_folder as load_folder
from dfm_jax.data.text import split_documents as split_documents
from dfm_jax.data.text import split_sizes as split_sizes
