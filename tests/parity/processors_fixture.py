"""What Hugging Face's Pillow processors make of 20 pictures, recorded for tests/test_processors.py.

Of each result the shape and a CRC of its float32 bytes are kept, and the preprocessor_config.json
of each processor. Pictures are drawn from a seed. `make parity` compares all of it with what the
peers give now, and `make parity CHECK=` records it anew.
"""

import json
import tempfile
import zlib
from pathlib import Path

import numpy as np
from parity.recorded import record

FIXTURE = Path(__file__).parents[1] / "data" / "processors.json"

# Height and width: squares, long and narrow ones, odd ones, smaller and larger than the result.
SIZES = (
    *((48, 48), (49, 48), (48, 49), (47, 47), (24, 24), (25, 31), (31, 25), (5, 5), (4, 90)),
    *((90, 4), (1, 60), (60, 1), (100, 33), (33, 100), (67, 131), (131, 67), (97, 96), (96, 97)),
    *((150, 149), (64, 200)),
)
SIDE = 48
SETTINGS = {
    "crop": ("CLIP", {"size": {"shortest_edge": SIDE}, "crop_size": SIDE}),
    "crop, larger before": ("CLIP", {"size": {"shortest_edge": 55}, "crop_size": SIDE}),
    "crop, smaller before": ("CLIP", {"size": {"shortest_edge": 37}, "crop_size": SIDE}),
    "pad": ("Llava", {"size": {"shortest_edge": SIDE}, "crop_size": SIDE, "do_pad": True}),
    "stretch": ("GotOcr2", {"size": {"height": SIDE, "width": SIDE}}),
    "tiles": ("GotOcr2", {"size": {"height": SIDE, "width": SIDE}, "crop_to_patches": True}),
    "few tiles, bilinear": (
        "GotOcr2",
        {
            "size": {"height": SIDE, "width": SIDE},
            "crop_to_patches": True,
            "min_patches": 2,
            "max_patches": 5,
            "resample": 2,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        },
    ),
}


def picture(height: int, width: int) -> np.ndarray:
    """Smooth colors with noise, [height, width, 3], in 8 bits."""
    rng = np.random.default_rng([height, width])
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(rows / 7 + i) * np.cos(columns / (5 + i)) for i in range(3)]
    noisy = np.stack(waves, axis=-1) + rng.normal(scale=20, size=(height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def digest(values: np.ndarray) -> list:
    """Shape and CRC of float32 values [T, size, size, 3]."""
    return [list(values.shape), zlib.crc32(np.ascontiguousarray(values, "<f4").tobytes())]


def main() -> None:
    import PIL.Image
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    classes = {
        "CLIP": CLIPImageProcessorPil,
        "Llava": LlavaImageProcessorPil,
        "GotOcr2": GotOcr2ImageProcessorPil,
    }
    found = {}
    for name, (kind, settings) in SETTINGS.items():
        processor = classes[kind](**settings)
        with tempfile.TemporaryDirectory() as folder:
            processor.save_pretrained(folder)
            said = json.loads((Path(folder) / "preprocessor_config.json").read_text())
        rows = []
        for size in SIZES:
            # As a Pillow image: of an array, the place of the colors would be guessed.
            values = processor(PIL.Image.fromarray(picture(*size)), return_tensors="np")
            rows.append(digest(values["pixel_values"].transpose(0, 2, 3, 1)))
        found[name] = {"settings": said, "results": rows}
    versions = {"pillow": PIL.__version__, "transformers": transformers.__version__}
    record(FIXTURE, {"versions": versions, "processors": found})
    print(json.dumps(versions))


if __name__ == "__main__":
    main()
