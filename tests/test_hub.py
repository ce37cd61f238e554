"""`open_folder("org/name")`: a repository served on loopback, its cache, and what is refused."""

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from test_pretrained import SETTINGS, assert_same, folder_of

from dfm_jax.models.pretrained import checkpoint_params, hub, open_folder, write_folder

NAME = "tiny/llama"
COMMIT, OLD = "a" * 40, "b" * 40


class Hub:
    """The few answers of a hub that a download asks for: of one repository, from a folder."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders, self.sent, self.status = folders, [], 200
        self.main, self.moves_to = COMMIT, COMMIT  # where the branch is, after the first file too
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, *, with_body: bool) -> None:
                status, headers, body = hub.found(unquote(urlsplit(self.path).path))
                if with_body and "/resolve/" in self.path:
                    hub.sent.append(self.path.rpartition("/")[2])
                    hub.main = hub.moves_to
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *args) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def found(self, path: str) -> tuple[int, dict[str, str], bytes]:
        def refused(status, code):
            return status, {"X-Error-Code": code, "X-Error-Message": code}, b""

        if self.status != 200:
            return refused(self.status, "GatedRepo" if self.status == 403 else "")
        api = f"/api/models/{NAME}"
        if not path.startswith((api, f"/{NAME}/")):
            return refused(404, "RepoNotFound")
        *_, revision = path.split("/revision/") if "/revision/" in path else path.split("/tree/")
        if path.startswith(f"/{NAME}/resolve/"):
            revision, _, name = path.removeprefix(f"/{NAME}/resolve/").partition("/")
            file = self.folders[revision] / name
            if not file.is_file():
                return refused(404, "EntryNotFound")
            content = file.read_bytes()
            tag = hashlib.sha256(content).hexdigest()
            return 200, {"ETag": f'"{tag}"', "X-Repo-Commit": revision}, content
        commit = {"main": self.main, "old": OLD}.get(revision, revision)
        if path == api:
            commit = self.main
        if commit not in self.folders:
            return refused(404, "RevisionNotFound")
        if "/tree/" in path:
            files = sorted(self.folders[commit].iterdir())
            entries = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                for file in files
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()
        about = {"id": NAME, "sha": commit, "siblings": [], "tags": [], "downloads": 0}
        return 200, {"Content-Type": "application/json"}, json.dumps(about).encode()


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A hub with a folder for each of two commits, and an empty cache."""
    folders = {COMMIT: folder_of(tmp_path / "new"), OLD: folder_of(tmp_path / "old")}
    (folders[COMMIT] / "pytorch_model.bin").write_bytes(b"is never read")
    (folders[COMMIT] / "tokenizer.json").write_text("{}")
    settings = SETTINGS | {"max_position_embeddings": 8}
    (folders[OLD] / "config.json").write_text(json.dumps(settings))
    hub = Hub(folders)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    disable_progress_bars()
    yield hub
    enable_progress_bars()
    hub.server.shutdown()
    hub.server.server_close()


def test_a_repository_is_downloaded_once_and_only_what_is_read(served, monkeypatch):
    here = open_folder(served.folders[COMMIT])
    found = open_folder(NAME)
    assert_same(checkpoint_params(found), checkpoint_params(here))
    assert sorted(served.sent) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (found.path / "tokenizer.json").is_file()
    open_folder(NAME)
    assert len(served.sent) == 3
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # as HF_HUB_OFFLINE=1 before it starts
    assert open_folder(NAME).path == found.path


def test_parts_are_downloaded_as_their_index_names_them(served, tmp_path):
    whole = open_folder(served.folders[OLD])
    parts = write_folder(
        tmp_path / "parts", whole.config, checkpoint_params(whole), max_part_bytes=20_000
    )
    (parts / "model-00009-of-00009.safetensors").write_bytes(b"of another model")
    served.folders[COMMIT] = parts
    assert_same(checkpoint_params(open_folder(NAME)), checkpoint_params(whole))
    assert "model-00009-of-00009.safetensors" not in served.sent
    assert sum(name.endswith(".safetensors") for name in served.sent) > 1


def test_a_revision_is_a_branch_or_a_commit(served):
    assert open_folder(NAME).config.max_positions == 16
    for revision in ("old", OLD):
        assert open_folder(NAME, revision=revision).config.max_positions == 8
    message = r"`revision` must be a branch, .* of tiny/llama; got revision = 'nowhere'\.$"
    with pytest.raises(FileNotFoundError, match=message):
        open_folder(NAME, revision="nowhere")


def test_weights_and_config_are_of_one_commit_though_the_branch_moves_on(served):
    served.moves_to = OLD
    found = open_folder(NAME)
    assert (found.path.name, found.config.max_positions) == (COMMIT, 16)
    assert open_folder(NAME).config.max_positions == 8


def test_a_folder_comes_before_a_repository_of_its_name(served, tmp_path):
    shutil.copytree(served.folders[OLD], tmp_path / "tiny" / "llama")
    assert open_folder(NAME).config.max_positions == 8
    assert not served.sent
    with pytest.raises(ValueError, match="`revision` must be None, unless `path` is org/name"):
        open_folder(NAME, revision="main")


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("tiny/nobody", FileNotFoundError, r"got path = 'tiny/nobody', which does not exist or is"),
        ("tiny", FileNotFoundError, r"or the name org/name of a repository; got path = 'tiny'\.$"),
        ("a/b/c", FileNotFoundError, r"or the name org/name of a repository; got path = 'a/b/c'"),
        (Path(NAME), FileNotFoundError, r"holds config.json, .*; got path = 'tiny/llama'\.$"),
        ("tiny/a--b", ValueError, r"`path` must be a folder, .*; got path = 'tiny/a--b'"),
    ],
)
def test_what_is_neither_a_folder_nor_a_repository_is_refused(served, path, kind, message):
    with pytest.raises(kind, match=message) as error:
        open_folder(path)
    assert "\n" not in str(error.value)


def test_a_gated_repository_and_a_hub_that_fails_are_refused(served):
    served.status = 403
    with pytest.raises(PermissionError, match=r"whose terms must be accepted on its page"):
        open_folder(NAME)
    served.status = 500
    with pytest.raises(ConnectionError, match=r"got (path = 'tiny/llama'|status = 500)\.$"):
        open_folder(NAME)


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "no network"])
def test_offline_what_is_not_in_the_cache_is_refused_with_one_sentence(served, how, monkeypatch):
    if how == "no network":
        served.server.shutdown()
        served.server.server_close()
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = r"because the Hugging Face Hub cannot be reached; got path = 'tiny/llama'\.$"
    with pytest.raises(ConnectionError, match=message) as error:
        open_folder(NAME)
    assert "\n" not in str(error.value)


def test_without_the_package_its_extra_is_named(served, monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"not installed: `pip install 'dfm_jax\[hub\]'`\.$"):
        open_folder(NAME)
    assert np.isfinite(open_folder(served.folders[OLD]).config.norm_epsilon)
