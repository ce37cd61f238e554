"""Sets of devices: what a host has, what each process gets, and that no two share a device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dfm_jax import cli
from dfm_jax.launch import (
    DeviceSet,
    Job,
    Row,
    device_kind,
    device_sets,
    devices,
    gpu_sets,
    run_jobs,
)

# Stands for the command: FILE. It says what it got, and when it ran.
CHILD = """
import json, os, pathlib, sys, time
began = time.monotonic()
time.sleep(0.15)
names = ["CUDA_VISIBLE_DEVICES", "JAX_NUM_CPU_DEVICES", "TPU_VISIBLE_CHIPS", "TPU_PROCESS_PORT"]
got = {name: os.environ[name] for name in names if name in os.environ}
got |= {"cores": sorted(os.sched_getaffinity(0)), "began": began, "ended": time.monotonic()}
pathlib.Path(sys.argv[1]).write_text(json.dumps(got))
"""


def host(root: Path, *, tpus: int = 0, gpus: int = 0, files: str = "vfio/{}") -> Path:
    """The folders of a host with so many chips: its PCI bus and its device files."""
    bus, dev = root / "sys/bus/pci/devices", root / "dev"
    (dev / "vfio").mkdir(parents=True)
    (dev / "vfio" / "vfio").touch()
    for number in range(tpus + 1):  # one more: the network card of such a host
        (bus / f"0000:00:0{number}.0").mkdir(parents=True)
        (bus / f"0000:00:0{number}.0" / "vendor").write_text("0x1ae0\n")
        device = "0x0063\n" if number < tpus else "0x0042\n"
        (bus / f"0000:00:0{number}.0" / "device").write_text(device)
    names = [files.format(number) for number in range(tpus)]
    names += [f"nvidia{number}" for number in range(gpus)]
    for name in [*names, *(["nvidiactl", "nvidia-uvm"] if gpus else [])]:
        (dev / name).touch()
    return root


@pytest.fixture
def installed(monkeypatch):
    """What is installed beside jax."""

    def install(*, libtpu: bool = False, plugins: tuple[str, ...] = ()) -> None:
        monkeypatch.setattr(devices, "_has_libtpu", lambda variables: libtpu)
        monkeypatch.setattr(devices, "_plugins", lambda: list(plugins))

    install()
    return install


def children(folder: Path, count: int, sets: list[DeviceSet]) -> list[dict]:
    """What each of so many children got, of which as many run at once as there are sets."""
    names = [f"child_{number}" for number in range(count)]
    jobs = [Job(name, (str(folder / name),), folder / "none") for name in names]
    options = {"at_once": len(sets), "devices": sets, "command": (sys.executable, "-c", CHILD)}
    rows = run_jobs(jobs, folder, **options, retries=0, say=lambda text: None)
    assert {row.status for row in rows} == {"finished"}
    return [json.loads((folder / name).read_text()) for name in names]


def at_once(one: dict, other: dict) -> bool:
    return one["began"] < other["ended"] and other["began"] < one["ended"]


# ── which devices there are ─────────────────────────────────────────────────────────────────────


def test_jaxs_own_order_decides_the_kind(tmp_path, installed):
    """A TPU with libtpu, then a GPU with jax's plugin for it, then the processor."""
    tpus, gpus = host(tmp_path / "t", tpus=4, gpus=2), host(tmp_path / "g", gpus=2)
    assert device_kind({}, tpus) == device_kind({}, gpus) == "cpu"
    installed(plugins=("xla_cuda13",))
    assert device_kind({}, tpus) == device_kind({}, gpus) == "gpu"
    assert device_kind({"CUDA_VISIBLE_DEVICES": ""}, gpus) == "cpu"
    installed(libtpu=True, plugins=("xla_cuda13",))
    assert (device_kind({}, tpus), device_kind({}, gpus)) == ("tpu", "gpu")
    for name, kind in {"cpu": "cpu", "cuda,cpu": "gpu", "tpu": "tpu", "TPU, cpu": "tpu"}.items():
        assert device_kind({"JAX_PLATFORMS": name}, tpus) == kind
    assert device_kind({"JAX_PLATFORMS": "", "JAX_PLATFORM_NAME": "cpu"}, tpus) == "cpu"


def test_a_platform_whose_devices_cannot_be_told_apart_is_refused(tmp_path, installed):
    with pytest.raises(ValueError, match="`JAX_PLATFORMS` must begin with tpu, cuda or cpu"):
        device_kind({"JAX_PLATFORMS": "rocm"}, host(tmp_path))
    installed(plugins=("xla_rocm7",))
    with pytest.raises(ValueError, match=r"`JAX_PLATFORMS` must say .* got plugins = \['xla_rocm7"):
        device_kind({}, tmp_path)
    assert device_kind({"JAX_PLATFORMS": "cpu"}, tmp_path) == "cpu"


@pytest.mark.parametrize("files", ["vfio/{}", "accel{}"])
def test_each_process_is_a_slice_of_its_own(tmp_path, installed, files):
    """Chips, shape and port of each; the network card is no chip, and vfio/vfio is none."""
    installed(libtpu=True)
    root = host(tmp_path, tpus=4, files=files)
    first, second = device_sets(2, {}, root)
    assert second == DeviceSet(
        "TPU 2,3",
        {
            **{"TPU_VISIBLE_CHIPS": "2,3", "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,2,1"},
            **{"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_ADDRESSES": "localhost:8478"},
            **{"TPU_HOST_BOUNDS": "1,1,1", "TPU_CHIPS_PER_HOST_BOUNDS": "1,2,1"},
            **{"TPU_PROCESS_PORT": "8478", "CLOUD_TPU_TASK_ID": "0"},
            **{"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
        },
    )
    assert first.variables["TPU_VISIBLE_CHIPS"] == "0,1"
    sets = device_sets(1, {}, root)
    assert [one.variables["TPU_VISIBLE_CHIPS"] for one in sets] == ["0", "1", "2", "3"]
    assert len({one.variables["TPU_PROCESS_PORT"] for one in sets}) == 4
    (whole,) = device_sets(4, {}, root)
    assert whole.variables["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "2,2,1"
    with pytest.raises(ValueError, match="must be 1, 2, 4 or 8 where the devices are chips"):
        device_sets(3, {}, root)
    with pytest.raises(ValueError, match="must be at most 4, the number of TPU chips here"):
        device_sets(8, {}, root)


def test_two_launches_of_one_host_divide_its_chips_by_the_variable(tmp_path, installed):
    installed(libtpu=True)
    root = host(tmp_path, tpus=4)
    one, other = (device_sets(1, {"TPU_VISIBLE_CHIPS": names}, root) for names in ("0,1", "2, 3"))
    assert [given.name for given in (*one, *other)] == ["TPU 0", "TPU 1", "TPU 2", "TPU 3"]
    assert len({given.variables["TPU_PROCESS_PORT"] for given in (*one, *other)}) == 4
    with pytest.raises(ValueError, match="`TPU_VISIBLE_CHIPS` must be numbers of chips; got TPU_V"):
        device_sets(1, {"TPU_VISIBLE_CHIPS": "0,x"}, root)


def test_gpus_are_those_that_the_launcher_may_use(tmp_path, installed):
    installed(plugins=("xla_cuda12",))
    root = host(tmp_path, gpus=5)
    assert device_sets(2, {}, root) == gpu_sets(["0,1", "2,3"])  # one is left over
    visible = {"CUDA_VISIBLE_DEVICES": "2, GPU-8f, 0,-1,1"}
    assert device_sets(1, visible, root) == gpu_sets(["2", "GPU-8f", "0"])
    with pytest.raises(ValueError, match="must be at most 3, the number of GPUs here"):
        device_sets(4, visible, root)


def test_cores_are_those_on_which_the_launcher_may_run(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {8, 2, 3, 9, 5})
    variables = {"JAX_PLATFORMS": "cpu"}
    sets = device_sets(2, variables)
    assert [one.cores for one in sets] == [(2, 3), (5, 8)]
    assert sets[0] == DeviceSet("CPU 2,3", {"JAX_NUM_CPU_DEVICES": "2"}, (2, 3))
    with pytest.raises(ValueError, match="must be at most 5, the number of cores of the processor"):
        device_sets(6, variables)
    with pytest.raises(ValueError, match="`devices_per_expert` must be at least 1"):
        device_sets(0, variables)
    monkeypatch.delattr(os, "sched_setaffinity")
    with pytest.raises(ValueError, match="must have sched_setaffinity, as on Linux"):
        device_sets(1, variables)


# ── what each process gets ──────────────────────────────────────────────────────────────────────


def test_children_that_run_at_once_have_other_cores_and_a_free_set_is_used_again(tmp_path):
    mine = os.sched_getaffinity(0)
    sets = device_sets(1, {"JAX_PLATFORMS": "cpu"})[:4]
    got = children(tmp_path, 2 * len(sets) + 1, sets)
    assert os.sched_getaffinity(0) == mine  # the launcher's own cores
    used = [one["cores"] for one in got]
    assert all(list(one.cores) in used for one in sets)
    assert all(cores in [list(one.cores) for one in sets] for cores in used)
    assert {one["JAX_NUM_CPU_DEVICES"] for one in got} == {"1"}
    pairs = [(a, b) for place, a in enumerate(got) for b in got[:place] if at_once(a, b)]
    assert len(sets) == 1 or pairs
    assert not any(set(a["cores"]) & set(b["cores"]) for a, b in pairs)


def test_children_that_run_at_once_have_other_chips(tmp_path, installed):
    installed(libtpu=True)
    sets = device_sets(1, {}, host(tmp_path, tpus=4))
    got = children(tmp_path, 6, sets)
    assert {one["TPU_VISIBLE_CHIPS"] for one in got} == set("0123")
    pairs = [(a, b) for place, a in enumerate(got) for b in got[:place] if at_once(a, b)]
    for name in ("TPU_VISIBLE_CHIPS", "TPU_PROCESS_PORT"):
        assert pairs
        assert not any(a[name] == b[name] for a, b in pairs)


@pytest.mark.slow
def test_jax_has_the_devices_of_its_set(tmp_path):
    size = min(2, len(os.sched_getaffinity(0)))
    sets = device_sets(size, {"JAX_PLATFORMS": "cpu"})[:1]
    text = "import jax, os; print(len(jax.devices()), len(os.sched_getaffinity(0)))"
    job = Job("one", (), tmp_path)
    run_jobs([job], tmp_path, devices=sets, command=(sys.executable, "-c", text))
    printed = (tmp_path / "logs" / "one.log").read_text().splitlines()[-1]
    assert printed == f"{size} {size}"


LAUNCH = """
import functools, pathlib, sys
from dfm_jax import cli, launch

root, run = map(pathlib.Path, sys.argv[1:])
launch.device_kind = functools.partial(launch.device_kind, root=root)
launch.device_sets = functools.partial(launch.device_sets, root=root)
child = (sys.executable, "-c", "import os; print('chip', os.environ['TPU_VISIBLE_CHIPS'])")
launch.run_jobs = functools.partial(launch.run_jobs, command=child)
words = ["launch", "local", "--config", "tiny", "--data", "d", "--run", str(run), "--experts"]
assert cli.main([*words, "0", "1", "--jobs", "auto", "--devices-per-expert", "1"]) == 0

import jax

try:
    jax.devices()
except RuntimeError as error:
    print("only now:", error)
"""


@pytest.mark.slow
def test_the_launcher_does_not_start_jax(tmp_path):
    """Its platform is a TPU that does not exist: a launcher that started jax would die of it."""
    root = host(tmp_path / "host", tpus=2)
    command = [sys.executable, "-c", LAUNCH, str(root), str(tmp_path / "run")]
    environment = os.environ | {"JAX_PLATFORMS": "tpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "expert_001: begins at step 0, on TPU 1\n" in done.stdout
    assert "only now: " in done.stdout
    for number in range(2):
        assert f"chip {number}\n" in (tmp_path / f"run/logs/expert_00{number}.log").read_text()


# ── the command line ────────────────────────────────────────────────────────────────────────────


def launched(monkeypatch, folder: Path, *words: str) -> tuple[int, dict]:
    """The status of a launch, and what it gave to `run_jobs`."""
    given: dict = {}

    def run(jobs, folder, **options):
        given.update(options)
        return [Row(job.name, "finished", 1, 1.0, 5, "") for job in jobs]

    monkeypatch.setattr("dfm_jax.launch.run_jobs", run)
    common = ["launch", "local", "--config", "tiny", "--data", "d", "--run", str(folder)]
    return cli.main([*common, "--experts", "0", "1", *words]), given


def test_auto_is_as_many_jobs_as_there_are_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    status, given = launched(monkeypatch, tmp_path, "--jobs", "auto", "--devices-per-expert", "2")
    assert (status, given["at_once"], given["devices"]) == (0, 3, device_sets(2))
    status, given = launched(monkeypatch, tmp_path, "--jobs", "2", "--devices-per-expert", "1")
    assert (status, given["at_once"], given["devices"]) == (0, 2, device_sets(1)[:2])
    status, given = launched(monkeypatch, tmp_path, "--jobs", "auto", "--gpus", "0", "1", "2,3")
    assert (status, given["at_once"]) == (0, 3)
    assert given["devices"] == gpu_sets(["0", "1", "2,3"])
    status, given = launched(monkeypatch, tmp_path, "--jobs", "4")
    assert (status, given["at_once"], given["devices"]) == (0, 4, [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--jobs auto", "`devices_per_expert` or `gpus` must be given if `jobs` is auto"),
        ("--jobs 3 --devices-per-expert 2", "`jobs` must be at most 2, the number of sets of"),
        ("--devices-per-expert 5", "`devices_per_expert` must be at most 4, the number of GPUs"),
        ("--devices-per-expert 1 --gpus 0", "`gpus` must not be given together with `devices_per_"),
        ("--jobs 2 --gpus 0", "`gpus` must hold 2 GPUs, one for each member that runs at once"),
        ("--jobs auto --gpus ,", "Each of `gpus` must name a GPU"),
        ("--devices-per-expert 2", "`placement` must be replicated or sharded if a member has sev"),
    ],
)
def test_a_launch_on_devices_that_cannot_be_is_refused(
    tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    placed = () if "placement" in message else ("--placement", "sharded")
    status, given = launched(monkeypatch, tmp_path, *words.split(), *placed)
    assert (status, given) == (2, {})
    assert message in capsys.readouterr().err
