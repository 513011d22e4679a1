"""Models of the Hugging Face hub: which files of a repository make one model, and the ones that are here already.

    ORG/REPO             the best GGUF for running, or the safetensors where there is none
    ORG/REPO:Q4_K_M      the GGUF of that type
    ORG/REPO/file.gguf   that very file (any part of a split one)

Files live in huggingface_hub's cache, shared with every program that uses it; HF_ENDPOINT, HF_HUB_CACHE, HF_TOKEN and
HF_HUB_OFFLINE are its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .disk import PICKLE
from .errors import BiseError, RequestError, UnsupportedError
from .quant import TYPES

Progress = Callable[[int, int], None]

# What is taken where several are offered: 4 bits of the better kind first, then what loses less, then what is smaller.
ORDER = (
    "Q4_K_M", "Q5_K_M", "Q4_K_S", "Q5_K_S", "Q4_K", "Q5_K", "Q4_0", "IQ4_XS", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q6_K",
    "Q8_0", "Q3_K_L", "Q3_K_M", "Q3_K", "Q3_K_S", "Q2_K", "F16", "BF16", "F32",
)  # fmt: skip
_ID = re.compile(r"([\w.-]+/[\w.-]+?)(?::([\w.-]+)|/([\w./-]+\.gguf))?")
_TYPE = re.compile(r"(?i)(?:^|[-._/])(I?Q\d+_(?:K(?:_[SML])?|[01]|XXS|XS|NL|[SML])|BF16|FP?16|F32)(?=[-./]|$)")
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_SMALL = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|params)\.json"
    r"|tokenizer\.model(\.v\d)?|chat_template\.jinja"
)


@dataclass(frozen=True)
class Wanted:
    """A hub id taken apart: the repository, and the type or the file of it."""

    repo: str
    type: str = ""
    file: str = ""

    @staticmethod
    def parse(id: str) -> Wanted:
        """RequestError if it is none of the three forms above."""
        match = _ID.fullmatch(id)
        if not match or ".." in id:
            raise RequestError(f"{id!r:.100} is no hub id, expected ORG/REPO, ORG/REPO:Q4_K_M or ORG/REPO/file.gguf")
        return Wanted(match[1], (match[2] or "").upper(), match[3] or "")


@dataclass(frozen=True)
class Held:
    """A model in the cache. id is what `load` takes; path the GGUF, or the folder."""

    id: str
    path: Path
    files: tuple[Path, ...]
    nbytes: int
    used: float  # when it was last read, seconds since 1970


def pull(id: str, progress: Progress | None = None, refresh: bool = False) -> Path:
    """The GGUF (the first part of a split one) or the folder of a hub model, downloaded where it is not here yet.

    A model that is here is taken without asking the hub, unless `refresh` asks for its newest version. A download that
    breaks off is taken up again. progress is called with (bytes here, bytes in all). BiseError says what went wrong.
    """
    from huggingface_hub import HfApi, constants

    from .download import download, polite

    wanted, cache = Wanted.parse(id), Path(constants.HF_HUB_CACHE)
    here = _here(wanted, cache)
    if here and not refresh:
        return here
    with polite(wanted.repo):
        info = HfApi(endpoint=constants.ENDPOINT).model_info(wanted.repo, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    names = choose(wanted, list(sizes))
    total, before = sum(sizes[name] for name in names), 0
    paths = []
    for name in names:

        def report(done: int, before: int = before) -> None:
            if progress:
                progress(before + done, total)

        paths.append(download(wanted.repo, name, info.sha or "main", cache, report))
        before += sizes[name]
    _remember(cache / f"models--{wanted.repo.replace('/', '--')}", info.sha or "main")
    return paths[0] if names[0].endswith(".gguf") else paths[0].parent


def held() -> list[Held]:
    """Every whole model in the cache that bise could open, by id. Other programs' models are among them."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    found = []
    for repo in sorted(repos, key=lambda r: r.repo_id):
        if repo.repo_type == "model" and repo.revisions:
            newest = max(repo.revisions, key=lambda r: ("main" in r.refs, r.last_modified))
            found += _models(repo.repo_id, newest.snapshot_path)
    return found


def remove(id: str) -> int:
    """Delete a model from the cache; returns the bytes that became free. ORG/REPO alone is the whole repository with
    all its versions and unfinished downloads. BiseError if it is not there."""
    import shutil

    from huggingface_hub import constants

    wanted = Wanted.parse(id)
    folder = Path(constants.HF_HUB_CACHE) / f"models--{wanted.repo.replace('/', '--')}"
    if not wanted.type and not wanted.file:
        if not folder.is_dir():
            raise BiseError(f"{id}: not in the cache {constants.HF_HUB_CACHE}: see 'bise models list'")
        freed = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
        shutil.rmtree(folder)
        return freed
    names = {path.name for path in _files(wanted, folder)}
    if not names:
        raise BiseError(f"{id}: not in the cache {constants.HF_HUB_CACHE}: see 'bise models list'")
    links = [path for path in folder.glob("snapshots/*/**/*.gguf") if path.name in names]
    blobs = {path.resolve() for path in links}
    freed = sum(blob.stat().st_size for blob in blobs)
    for path in [*links, *blobs]:
        path.unlink(missing_ok=True)
    return freed


def choose(wanted: Wanted, names: Sequence[str]) -> list[str]:
    """Of a repository's files those that make one model, the one to open first; small ones come before large ones.

    Never two copies of the weights (Mistral's releases carry consolidated and model-* files), never pickles.
    RequestError or UnsupportedError where there is nothing to choose.
    """
    ggufs = _whole_ggufs([name for name in names if name.endswith(".gguf") and not re.search("mmproj|imatrix", name)])
    if wanted.file:
        found = [parts for parts in ggufs if wanted.file in parts]
        if not found:
            raise RequestError(f"{wanted.repo} has no file {wanted.file} (or not all its parts): {_offer(ggufs)}")
        return found[0]
    if ggufs:
        return _choose_gguf(wanted, ggufs)
    if wanted.type:
        raise RequestError(f"{wanted.repo} has no GGUF files: name it without :{wanted.type}")
    return _choose_safetensors(wanted.repo, [name for name in names if "/" not in name])


def _choose_gguf(wanted: Wanted, ggufs: list[list[str]]) -> list[str]:
    types = [_type(parts[0]) for parts in ggufs]
    if wanted.type:
        if wanted.type not in types:
            raise RequestError(f"{wanted.repo} has no {wanted.type}: {_offer(ggufs)}")
        if wanted.type not in ORDER:
            raise UnsupportedError(f"{wanted.repo}: bise does not read {wanted.type}, it reads {', '.join(TYPES)}")
        return ggufs[types.index(wanted.type)]
    for type in ORDER:
        if type in types:
            return ggufs[types.index(type)]
    if len(ggufs) == 1:
        return ggufs[0]
    raise RequestError(f"{wanted.repo} holds {len(ggufs)} models, name one of them: {_offer(ggufs)}")


def _choose_safetensors(repo: str, names: list[str]) -> list[str]:
    small = sorted(name for name in names if _SMALL.fullmatch(name))
    sharded = sorted(name for name in names if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", name))
    if sharded and "model.safetensors.index.json" in names:
        return [*small, "model.safetensors.index.json", *sharded]
    for stem, description in (("model", "config.json"), ("consolidated", "params.json")):
        if f"{stem}.safetensors" in names and description in names:
            return [*small, f"{stem}.safetensors"]
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        raise UnsupportedError(f"{repo} has its weights only as {PICKLE}")
    raise UnsupportedError(f"{repo} has no model that bise reads: neither .gguf nor .safetensors with a config.json")


def _whole_ggufs(names: Sequence[str]) -> list[list[str]]:
    """Each model's parts in order; split ones with a part missing are left out."""
    models = []
    for name in sorted(names):
        match = _PART.fullmatch(name)
        if not match:
            models.append([name])
        elif int(match[2]) == 1:
            parts = [f"{match[1]}-{i + 1:05}-of-{match[3]}.gguf" for i in range(min(int(match[3]), 1024))]
            if set(parts) <= set(names):
                models.append(parts)
    return models


def _type(name: str) -> str:
    """The type that a file's name speaks of ("" if it does not): model.q4_k_m.gguf -> Q4_K_M."""
    found = _TYPE.findall(name.removesuffix(".gguf"))
    return found[-1].upper().replace("FP16", "F16") if found else ""


def _offer(ggufs: list[list[str]]) -> str:
    names = [_type(parts[0]) or parts[0] for parts in ggufs]
    return f"there are {', '.join(names[:12])}" if names else "there is none"


def _here(wanted: Wanted, cache: Path) -> Path | None:
    """The model in the cache, if all its files are there."""
    files = _files(wanted, cache / f"models--{wanted.repo.replace('/', '--')}")
    if not files:
        return None
    return files[0] if files[0].suffix == ".gguf" else files[0].parent


def _files(wanted: Wanted, folder: Path) -> list[Path]:
    """Of the snapshot that main points to, the files of the wanted model: all of them, or []."""
    try:
        snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
    except OSError:
        return []
    names = sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())
    try:
        chosen = choose(wanted, names)
    except BiseError:
        return []
    if "model.safetensors.index.json" in chosen:
        count = int(chosen[-1].removesuffix(".safetensors")[-5:])  # model-00001-of-00003
        if count != sum(name.startswith("model-") for name in chosen):
            return []
    return [snapshot / name for name in chosen]


def _models(repo: str, snapshot: Path) -> list[Held]:
    """Everything in one snapshot that can be opened."""
    names = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    ggufs = _whole_ggufs([name for name in names if name.endswith(".gguf")])
    types = [_type(parts[0]) for parts in ggufs]
    found = []
    for parts, type in zip(ggufs, types, strict=True):
        id = f"{repo}:{type}" if type and types.count(type) == 1 else f"{repo}/{parts[0]}"
        found.append(_held(id, [snapshot / part for part in parts], snapshot / parts[0]))
    files = _files(Wanted(repo), snapshot.parent.parent) if not ggufs else []
    return [*found, _held(repo, files, snapshot)] if files else found


def _held(id: str, files: list[Path], path: Path) -> Held:
    stats = [file.stat() for file in files]
    return Held(id, path, tuple(files), sum(s.st_size for s in stats), max(s.st_atime for s in stats))


def _remember(folder: Path, revision: str) -> None:
    """Note which version main is, as huggingface_hub does: written last, when all its files are here."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(revision)
