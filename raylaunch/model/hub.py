"""Models named on the Hub: from a name to a folder of this node's cache, with one short question to the network.

Whoever needs a model's files asks here and then reads the folder. Given a name, each library would ask the Hub again,
for every file, and try a network that is not there for minutes.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from raylaunch.background import Background
from raylaunch.errors import one_line
from raylaunch.values.json_text import from_json

ASK_S = 5.0
ASK_AGAIN_S = 60.0
SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
WEIGHTS = "*.safetensors"
INDEX = "model.safetensors.index.json"
COMMIT = re.compile("[0-9a-f]{40}")
OF_THIS_MODEL = (401, 403, 404)
"""Statuses that say nothing of another model, nor of another revision."""

log = logging.getLogger(__name__)


class HubError(Exception):
    """A model that can be had neither from the Hub nor from the cache; says why in one line."""


@dataclass(frozen=True)
class Revision:
    """What the Hub said of a revision.

    Attributes:
        commit: what the revision is now; None if it did not say.
        problem: why it did not.
    """

    commit: str | None
    problem: str = ""


_SILENT: dict[str, tuple[float, Revision]] = {}
"""Hubs that have not answered, by address: when they were asked, and what was wrong."""
_SAID: set[Path] = set()
"""Snapshots of which it was said that they are used although the Hub has not answered."""


def ask(path: str, revision: str | None) -> Revision:
    """What ``revision`` is now: the Hub is asked once, for at most :data:`ASK_S`. This process asks one that is not
    there no more within :data:`ASK_AGAIN_S`, whatever for.

    Raises:
        ValueError: ``path`` is no name on the Hub.
    """
    from huggingface_hub import constants, hf_hub_url

    hf_hub_url(path, "config.json")  # which looks at the name
    if constants.HF_HUB_OFFLINE:
        return Revision(None, "HF_HUB_OFFLINE is set")
    silent_at, silent = _SILENT.get(constants.ENDPOINT, (0.0, None))
    if silent is not None and time.monotonic() - silent_at < ASK_AGAIN_S:
        return silent
    return _ask(path, revision or constants.DEFAULT_REVISION)


def _ask(path: str, revision: str) -> Revision:
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    url = hub.hf_hub_url(path, "config.json", revision=revision)
    asking = Background(lambda: hub.get_hf_file_metadata(url, timeout=ASK_S))
    try:
        return Revision(asking.result(ASK_S).commit_hash or revision)
    except EntryNotFoundError:  # the repository of a tokenizer needs none
        return Revision(revision)
    except Exception as error:  # those of its HTTP client are of no class that it names
        late = isinstance(error, TimeoutError) or "timeout" in type(error).__name__.lower()
        answer = Revision(None, f"the Hub does not answer within {ASK_S:g} s" if late else problem_of(error, path))
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        if status not in OF_THIS_MODEL:
            _SILENT[hub.constants.ENDPOINT] = time.monotonic(), answer
        return answer


def snapshot(path: str, revision: str | None, patterns: Sequence[str], *, weights: bool = False) -> Path:
    """The folder with a model's files, fetched into the cache as far as they are missing and the Hub answers.

    Args:
        patterns: files to fetch.
        weights: whether the model's weights must be there.
    Raises:
        HubError: it cannot be had.
        ValueError: ``path`` is no name on the Hub.
    """
    from huggingface_hub import snapshot_download

    folder = cached(path, revision)
    if weights and folder is not None and COMMIT.fullmatch(revision or "") and not missing_weights(folder):
        return folder  # nobody can have changed it
    answer = ask(path, revision)
    folder = (cached(path, answer.commit) if answer.commit else None) or cached(path, revision)
    if answer.commit is not None:
        try:
            whole = Path(snapshot_download(path, revision=answer.commit, allow_patterns=list(patterns)))
            remember(path, revision, answer.commit)
            return whole
        except Exception as error:
            if folder is None or (weights and missing_weights(folder)):
                raise HubError(f"it cannot be fetched: {problem_of(error, path)}") from error
            answer = Revision(None, f"the Hub does not give all of it: {problem_of(error, path)}")
    if folder is None:
        raise HubError(f"{answer.problem}, and the cache has nothing of it")
    if weights and (file := missing_weights(folder)):
        raise HubError(f"{answer.problem}, and the cached snapshot {folder.name[:7]} has no {file}")
    if answer.problem and not answer.problem.startswith("HF_HUB_OFFLINE"):
        if folder not in _SAID:
            log.warning("%s: the cached snapshot %s of %s is used", answer.problem, folder.name[:7], path)
        _SAID.add(folder)
    return folder


def cache_of(path: str) -> Path:
    """Where this node's cache keeps a model of this name, be it there or not."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(os.path.expanduser(constants.HF_HUB_CACHE)) / repo_folder_name(repo_id=path, repo_type="model")


def cached(path: str, revision: str | None) -> Path | None:
    """The folder of this node's cache with the revision, whole or not; None if there is none."""
    from huggingface_hub import constants

    model = cache_of(path)
    revision = revision or constants.DEFAULT_REVISION
    reference = model / "refs" / revision
    try:
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    except OSError:
        return None
    folder = model / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of the Hub's local cache holds; None for any other folder."""
    in_cache = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return folder.name if in_cache else None


def remember(path: str, revision: str | None, commit: str) -> None:
    """Notes what the revision was, as the Hub's library does where it is not asked by the commit: without a network
    nothing else says so."""
    from huggingface_hub import constants

    model = cache_of(path)
    reference = model / "refs" / (revision or constants.DEFAULT_REVISION)
    with suppress(OSError):  # a cache that may only be read
        if not COMMIT.fullmatch(reference.name) and (not reference.is_file() or reference.read_text() != commit):
            reference.parent.mkdir(parents=True, exist_ok=True)
            part = reference.with_name(f".{reference.name}.{secrets.token_hex(4)}")
            try:
                part.write_text(commit)
                part.replace(reference)  # whole, or what it was: others read it meanwhile, and a disk may be full
            finally:
                part.unlink(missing_ok=True)


def missing_weights(folder: Path) -> str:
    """A file of weights that the folder should have and has not; "" if there is none. A dead link is no file."""
    index = folder / INDEX
    if not index.is_file():
        return "" if any(file.is_file() for file in folder.glob(WEIGHTS)) else WEIGHTS
    try:
        weights = from_json(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in weights.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"readable {INDEX}"
    return next((name for name in names if not os.path.isfile(folder / name)), "")  # also of names too long for one


def go_offline() -> None:
    """From here on no library of this process asks the Hub, nor of one that it starts: as with HF_HUB_OFFLINE=1."""
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def problem_of(error: BaseException, path: str) -> str:
    """Why a model cannot be had, and what to do about it, in one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"it is gated: accept its terms at {constants.ENDPOINT}/{path}, and set HF_TOKEN to a token of yours"
    if isinstance(error, RepositoryNotFoundError):
        return "the Hub has no such model for you: check the name, or set HF_TOKEN to a token that may read it"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision: check model.revision"
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"the cache {constants.HF_HUB_CACHE} cannot be written: set HF_HUB_CACHE to a folder that can"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"there is no room left in {constants.HF_HUB_CACHE}: make some, or set HF_HUB_CACHE to another folder"
    return one_line(error)
