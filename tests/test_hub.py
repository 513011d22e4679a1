"""pull, list and remove against a small hub on this machine, which can be told to fail in the ways real ones do."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import bise
from bise.cli import main
from bise.errors import BiseError, RequestError, UnsupportedError
from bise.hub import ORDER, Wanted, choose, held, pull, remove
from tiny import tiny_config, tiny_weights, write_tiny_gguf

REVISION = "0123456789abcdef0123456789abcdef01234567"
LARGE = bytes(range(256)) * 400  # 102,400 bytes


@dataclass
class Hub:
    """files: {repo: {name: bytes}}. What goes wrong is set by the tests."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # (verb, path, Range)
    cut: list[int] = field(default_factory=list)  # bytes after which each next download is cut; 0: no answer at all
    spoil: bool = False  # other bytes than announced
    whole_only: bool = False  # no answers to Range
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)  # repo -> status and X-Error-Code
    url: str = ""

    def downloads(self) -> list[str]:
        return [path for verb, path, _ in self.asked if verb == "GET" and "/resolve/" in path]

    def ranges(self) -> list[str]:
        return [range for verb, path, range in self.asked if verb == "GET" and "/resolve/" in path]


class Answer(BaseHTTPRequestHandler):
    """The three requests of the hub's protocol that matter here."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_GET(self) -> None:
        self.answer("GET")

    def answer(self, verb: str) -> None:
        path = self.path.partition("?")[0].removeprefix("/")
        self.hub.asked.append((verb, path, self.headers.get("Range", "")))
        about = path.startswith("api/models/")
        org, name, *rest = path.removeprefix("api/models/").split("/")
        repo = f"{org}/{name}"
        if repo in self.hub.answers or repo not in self.hub.files:
            status, code = self.hub.answers.get(repo, (404, "RepoNotFound"))
            self.reply(status, b"{}", {"X-Error-Code": code}, verb)
        elif about:
            self.reply(200, json.dumps(self.about(repo)).encode(), {"Content-Type": "application/json"}, verb)
        else:
            self.file(verb, repo, "/".join(rest[2:]))

    def about(self, repo: str) -> dict[str, Any]:
        siblings = [{"rfilename": name, "size": len(data)} for name, data in self.hub.files[repo].items()]
        return {"id": repo, "sha": REVISION, "siblings": siblings, "private": False, "tags": [], "downloads": 0}

    def file(self, verb: str, repo: str, name: str) -> None:
        data = self.hub.files[repo].get(name)
        if data is None:
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, verb)
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
        if self.hub.spoil:
            data = data[:-1] + b"!"
        begin = 0
        if wanted := "" if self.hub.whole_only else self.headers.get("Range", ""):
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self.reply(206 if wanted else 200, data[begin:], headers, verb)
        return None

    def reply(self, status: int, body: bytes, headers: dict[str, str], verb: str) -> None:
        cut = self.hub.cut.pop(0) if verb == "GET" and "/resolve/" in self.path and self.hub.cut else None
        if cut != 0:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if verb == "GET":
                self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answer", (Answer,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("bise.download.PAUSE", 0.0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()


def test_pull_takes_the_best_gguf_and_nothing_else(hub: Hub) -> None:
    hub.files["org/m"] = {"m.Q8_0.gguf": b"eight", "m.Q4_K_M.gguf": LARGE, "m.Q2_K.gguf": b"two", "README.md": b"#"}
    seen: list[tuple[int, int]] = []
    path = pull("org/m", lambda done, total: seen.append((done, total)))
    assert path.name == "m.Q4_K_M.gguf" and path.read_bytes() == LARGE
    assert hub.downloads() == [f"org/m/resolve/{REVISION}/m.Q4_K_M.gguf"]
    assert seen[-1] == (len(LARGE), len(LARGE)) and seen == sorted(seen)


def test_what_is_here_is_taken_without_a_word_to_the_hub(hub: Hub) -> None:
    hub.files["org/m"] = {"m.Q8_0.gguf": LARGE}
    path = pull("org/m")
    hub.asked.clear()
    assert pull("org/m") == pull("org/m:q8_0") == pull("org/m/m.Q8_0.gguf") == path
    assert not hub.asked


def test_refresh_asks_again_but_downloads_only_what_is_new(hub: Hub) -> None:
    hub.files["org/m"] = {"m.Q8_0.gguf": LARGE}
    pull("org/m")
    hub.asked.clear()
    pull("org/m", refresh=True)
    assert hub.asked and not hub.downloads()


def test_a_split_gguf_comes_whole_and_its_first_part_is_the_path(hub: Hub) -> None:
    names = [f"m-Q5_K_M-{i}-of-00003.gguf" for i in ("00001", "00002", "00003")]
    hub.files["org/m"] = {name: name.encode() for name in names}
    path = pull("org/m:Q5_K_M")
    assert path.name == names[0]
    assert [path.with_name(name).read_bytes() for name in names] == [name.encode() for name in names]


def test_safetensors_come_once_with_config_and_tokenizer(hub: Hub) -> None:
    """Mistral 7B v0.3's repository: both copies of the weights are in it, and a pickle for good measure."""
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    wanted = ["config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "params.json"]
    wanted += ["model.safetensors.index.json", *shards]
    others = ["consolidated.safetensors", "pytorch_model.bin", "README.md", ".gitattributes"]
    hub.files["org/v3"] = {name: name.encode() for name in [*others, *wanted]}
    folder = pull("org/v3")
    assert folder.is_dir() and sorted(p.name for p in folder.iterdir()) == sorted(wanted)
    assert pull("org/v3") == folder


def test_a_folder_with_a_shard_missing_is_not_taken_for_whole(hub: Hub) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    names = ["config.json", "model.safetensors.index.json", *shards]
    hub.files["org/m"] = {name: name.encode() for name in names}
    folder = pull("org/m")
    (folder / names[-1]).unlink()
    hub.asked.clear()
    assert pull("org/m") == folder and (folder / names[-1]).exists()
    assert hub.asked


def test_a_cut_connection_is_taken_up_where_it_broke(hub: Hub) -> None:
    hub.files["org/m"] = {"m.Q4_0.gguf": LARGE}
    hub.cut = [40_000]
    assert pull("org/m").read_bytes() == LARGE
    assert hub.ranges() == ["", "bytes=40000-"]


def test_a_download_that_failed_goes_on_the_next_time(hub: Hub) -> None:
    hub.files["org/m"] = {"m.Q4_0.gguf": LARGE}
    hub.cut = [30_000, *[0] * 40]
    with pytest.raises(BiseError, match=r"broke off after 30,000 of 102,400 bytes .*: run the same again"):
        pull("org/m")
    assert held() == []
    hub.cut.clear()
    hub.asked.clear()
    seen: list[int] = []
    assert pull("org/m", lambda done, _: seen.append(done)).read_bytes() == LARGE
    assert hub.ranges() == ["bytes=30000-"]
    assert min(seen) > 30_000


def test_a_part_that_is_longer_than_the_file_is_not_gone_on_with(hub: Hub, tmp_path: Path) -> None:
    hub.files["org/m"] = {"m.Q4_0.gguf": LARGE}
    blobs = tmp_path / "cache" / "models--org--m" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(LARGE).hexdigest()}.incomplete").write_bytes(LARGE * 2)
    assert pull("org/m").read_bytes() == LARGE
    assert hub.ranges() == [""]


def test_a_part_with_other_bytes_in_it_is_found_out(hub: Hub, tmp_path: Path) -> None:
    hub.files["org/m"] = {"m.Q4_0.gguf": LARGE}
    blobs = tmp_path / "cache" / "models--org--m" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{hashlib.sha256(LARGE).hexdigest()}.incomplete").write_bytes(bytes(1000))
    with pytest.raises(BiseError, match="arrived damaged"):
        pull("org/m")
    assert pull("org/m").read_bytes() == LARGE


def test_a_damaged_file_is_deleted_and_named(hub: Hub) -> None:
    hub.files["org/m"] = {"m.Q4_0.gguf": LARGE}
    hub.spoil = True
    with pytest.raises(BiseError, match="arrived damaged"):
        pull("org/m")
    assert held() == []
    hub.spoil = False
    assert pull("org/m").read_bytes() == LARGE


def test_a_connection_that_is_cut_again_and_again(hub: Hub) -> None:
    hub.files["org/m"] = {"m.Q4_0.gguf": LARGE}
    hub.cut = [10_000, 20_000, 0, 0, 5000, 0]
    assert pull("org/m").read_bytes() == LARGE
    assert hub.ranges() == ["", *(f"bytes={n}-" for n in (10_000, 30_000, 30_000, 30_000, 35_000, 35_000))]


def test_a_server_that_cannot_begin_in_the_middle(hub: Hub) -> None:
    hub.files["org/m"] = {"m.Q4_0.gguf": LARGE}
    hub.cut, hub.whole_only = [10_000], True
    assert pull("org/m").read_bytes() == LARGE


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, "RepoNotFound"), "no such file here and no such model on .*check the name"),
        ((401, "RepoNotFound"), "no such model .*or a private one.*hf auth login"),
        ((403, "GatedRepo"), "its owner wants its terms accepted: visit http://127.*org/x.*hf auth login"),
        ((401, "GatedRepo"), "its owner wants its terms accepted"),
        ((418, ""), "answers 418: try again later"),
    ],
)
def test_refusals_of_the_hub_say_what_to_do(hub: Hub, answer: tuple[int, str], message: str) -> None:
    hub.answers["org/x"] = answer
    with pytest.raises(BiseError, match=message) as refused:
        pull("org/x")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 250


def test_without_a_network_one_clear_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.files["org/m"] = {"m.Q4_0.gguf": LARGE}
    path = pull("org/m")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens on the discard port
    assert pull("org/m") == path
    with pytest.raises(BiseError, match=r"org/other: not in the cache, and http://127\.0\.0\.1:9 cannot be reached"):
        pull("org/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull("org/m") == path
    with pytest.raises(BiseError, match="HF_HUB_OFFLINE forbids the network"):
        pull("org/other")


def test_list_and_remove(hub: Hub) -> None:
    hub.files["org/m"] = {"m.Q4_0.gguf": LARGE, "m.Q8_0.gguf": LARGE[1:]}
    hub.files["org/s"] = {"config.json": b"{}", "model.safetensors": LARGE[2:]}
    assert held() == []
    for id in ("org/m", "org/m:Q8_0", "org/s"):
        pull(id)
    assert [(m.id, m.nbytes) for m in held()] == [
        ("org/m:Q4_0", len(LARGE)),
        ("org/m:Q8_0", len(LARGE) - 1),
        ("org/s", len(LARGE) - 2 + 2),
    ]
    assert remove("org/m:Q8_0") == len(LARGE) - 1
    assert [m.id for m in held()] == ["org/m:Q4_0", "org/s"]
    assert remove("org/s") >= len(LARGE)
    assert remove("org/m") >= len(LARGE)
    assert held() == []
    with pytest.raises(BiseError, match="org/m: not in the cache"):
        remove("org/m")
    with pytest.raises(BiseError, match="org/m:Q8_0: not in the cache"):
        remove("org/m:Q8_0")


def test_load_takes_an_id(hub: Hub, tmp_path: Path) -> None:
    config = tiny_config()
    file = write_tiny_gguf(tmp_path / "m-Q8_0.gguf", config, tiny_weights(config))
    hub.files["org/m"] = {file.name: file.read_bytes()}
    there, here = (bise.load(path, backend="reference") for path in ("org/m:Q8_0", file))
    assert there.weights.fingerprint == here.weights.fingerprint
    assert bise.load("org/m/m-Q8_0.gguf", backend="reference").path == there.path


def test_the_command(hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def models(*arguments: str) -> tuple[str, str, int]:
        monkeypatch.setattr("sys.argv", ["bise", "models", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return (*capsys.readouterr(), int(end.value.code or 0))

    hub.files["org/m"] = {"m.Q4_0.gguf": LARGE}
    out, err, code = models("pull", "org/m")
    assert (Path(out.strip()).read_bytes(), err, code) == (LARGE, "", 0)
    assert [(m["id"], m["bytes"]) for m in json.loads(models("list", "--json")[0])] == [("org/m:Q4_0", len(LARGE))]
    table = models()[0]
    assert "org/m:Q4_0" in table and "100 KiB" in table
    out, err, code = models("pull", "org/none")
    assert (out, err.count("\n"), code) == ("", 1, 2)
    assert err.startswith(f"bise: org/none: no such file here and no such model on {hub.url}, or a private one: check")
    assert models("remove", "org/m:Q4_0") == ("", "removed org/m:Q4_0, 100 KiB\n", 0)


# --- choosing, without a hub


@pytest.mark.parametrize(
    ("id", "wanted"),
    [
        ("a/b", Wanted("a/b")),
        ("TheBloke/Mistral-7B-v0.1-GGUF:q4_k_m", Wanted("TheBloke/Mistral-7B-v0.1-GGUF", "Q4_K_M")),
        ("a/b/sub/c.gguf", Wanted("a/b", file="sub/c.gguf")),
    ],
)
def test_parse(id: str, wanted: Wanted) -> None:
    assert Wanted.parse(id) == wanted


@pytest.mark.parametrize("id", ["", "a", "a/b/c", "a b/c", "/a/b", "a/b:", "../b", "a/b/../c.gguf", "a/b?x=1"])
def test_parse_refuses(id: str) -> None:
    with pytest.raises(RequestError, match="no hub id"):
        Wanted.parse(id)


def test_types_are_read_from_names_of_every_style() -> None:
    for name in ("m-7b.Q4_K_M.gguf", "M-7B-q4_k_m.gguf", "Q4_K_M/model.gguf", "m-Q4_K_M-00001-of-00001.gguf"):
        assert choose(Wanted("a/b", "Q4_K_M"), [name, "m.Q8_0.gguf"]) == [name]
    assert choose(Wanted("a/b", "F16"), ["m-fp16.gguf"]) == ["m-fp16.gguf"]
    assert choose(Wanted("a/b"), ["ggml-model.gguf", "mmproj-F16.gguf", "x.imatrix.gguf"]) == ["ggml-model.gguf"]


def test_the_order_of_preference() -> None:
    names = [f"m.{type}.gguf" for type in sorted(ORDER)]
    for type in ORDER:
        assert choose(Wanted("a/b"), names) == [f"m.{type}.gguf"]
        names.remove(f"m.{type}.gguf")


@pytest.mark.parametrize(
    ("wanted", "names", "error", "message"),
    [
        (Wanted("a/b"), ["one.gguf", "two.gguf"], RequestError, "2 models, .*: there are one.gguf, two.gguf"),
        (Wanted("a/b", "Q6_K"), ["m.Q4_0.gguf"], RequestError, "has no Q6_K: there are Q4_0"),
        (Wanted("a/b", "IQ2_XXS"), ["m.IQ2_XXS.gguf"], UnsupportedError, "bise does not read IQ2_XXS"),
        (Wanted("a/b", file="x.gguf"), ["m.Q4_0.gguf"], RequestError, "has no file x.gguf"),
        (Wanted("a/b", "Q4_0"), ["model.safetensors"], RequestError, "has no GGUF files"),
        (Wanted("a/b"), ["m-Q4_0-00001-of-00002.gguf"], UnsupportedError, "no model that bise reads"),
        (Wanted("a/b"), ["config.json", "pytorch_model.bin"], UnsupportedError, "pickle"),
        (Wanted("a/b"), ["README.md"], UnsupportedError, "no model that bise reads"),
    ],
)
def test_nothing_to_choose(wanted: Wanted, names: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        choose(wanted, names)


def test_mistrals_own_layout_where_it_is_the_only_one() -> None:
    names = ["consolidated.safetensors", "params.json", "tokenizer.model.v3", "README.md"]
    assert choose(Wanted("a/b"), names) == ["params.json", "tokenizer.model.v3", "consolidated.safetensors"]
