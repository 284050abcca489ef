"""Find pretrained weights: in the hub's cache without network, then by network within a few seconds, or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

from dlprobe.errors import BackboneError

#: How long the hub may take to answer whether a file is there.
ANSWER_TIMEOUT_S = 3.0
FILENAMES = ("model.safetensors", "pytorch_model.bin")


def cached_weights(repository: str, filenames: tuple[str, ...] = FILENAMES) -> Path | None:
    """Return the weight file of a hub repository if the cache has it; never touches the network."""
    from huggingface_hub import try_to_load_from_cache

    for filename in filenames:
        found = try_to_load_from_cache(repository, filename)
        if isinstance(found, str):
            return Path(found)
    return None


def fetch_weights(repository: str, name: str, filenames: tuple[str, ...] = FILENAMES) -> Path:
    """Return the weight file of a hub repository, from the cache or else downloaded into it.

    Parameters
    ----------
    repository : str
        Such as ``timm/vit_base_patch14_reg4_dinov2.lvd142m``.
    name : str
        The backbone, for messages.
    filenames : tuple of str
        Accepted files, best first.

    Raises
    ------
    BackboneError
        If it is neither here nor to be had: with ``HF_HUB_OFFLINE`` at once, without network in a few seconds.
    """
    if cached := cached_weights(repository, filenames):
        return cached
    from huggingface_hub import constants, hf_hub_download

    if constants.HF_HUB_OFFLINE:
        raise _absent(name, repository, "HF_HUB_OFFLINE is set")
    filename = _ask(repository, name, filenames)
    try:
        return Path(hf_hub_download(repository, filename, etag_timeout=ANSWER_TIMEOUT_S))
    except _network_errors() as error:
        raise _absent(name, repository, _reason(error)) from error


def _ask(repository: str, name: str, filenames: tuple[str, ...]) -> str:
    """Return the first file that the hub has. One question without retries, in a thread: a resolver may hang."""
    answers: list[str | BaseException] = []
    asker = threading.Thread(target=_collect, args=(repository, filenames, answers), daemon=True)
    asker.start()
    asker.join(ANSWER_TIMEOUT_S + 1)
    match answers:
        case [str(filename)]:
            return filename
        case [BaseException() as error]:
            raise _absent(name, repository, _reason(error)) from error
    raise _absent(name, repository, f"the hub did not answer within {ANSWER_TIMEOUT_S:.0f} s")


def _collect(repository: str, filenames: tuple[str, ...], answers: list[str | BaseException]) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    failure: BaseException | None = None
    for filename in filenames:
        try:
            get_hf_file_metadata(hf_hub_url(repository, filename), timeout=ANSWER_TIMEOUT_S)
        except EntryNotFoundError as error:
            failure = error
        except _network_errors() as error:
            failure = error
            break
        else:
            answers.append(filename)
            return
    if failure is not None:
        answers.append(failure)


def _network_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub import errors

    transport: type[Exception] = vars(errors)["HTTPError"]  # of the HTTP library that this release of the hub uses
    return (OSError, transport)


def _reason(error: BaseException) -> str:
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return "its licence must be accepted on the hub and a login is needed (`hf auth login`)"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such repository, or shows it only to those who are logged in"
    if isinstance(error, EntryNotFoundError) and not isinstance(error, FileNotFoundError):
        return "the repository has no weight file of a known name"
    return "the hub cannot be reached"


def _absent(name: str, repository: str, reason: str) -> BackboneError:
    return BackboneError(
        f"the pretrained weights of {name} are not on this machine and cannot be fetched ({reason}); "
        f"give the file with --weights FILE, or fetch {repository} on a connected machine and point HF_HOME at that "
        "cache, or say --weights random:SEED to go on without trained weights"
    )
