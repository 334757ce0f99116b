"""Model names: a folder, or a repository that is downloaded from the Hugging Face hub.

Without a connection nothing is tried twice: what was fetched before is used, and of what was not
it is said at once.
"""

from __future__ import annotations

import os
import ssl
from functools import cache
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ....cache.errors import Unreachable, WrongUse

ANSWER_SECONDS = 5.0


def local_folder(name: str | None, key: str) -> Path | None:
    """Return the folder that `name` means, or None where it can only be a hub repository.

    Args:
        key: the setting that it is the value of.

    Raises:
        WrongUse: it reads as a path, and there is no such folder.
    """
    if name is None:
        return None
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if _is_repository(name) and not folder.exists():
        return None
    problem = "is not a folder" if folder.exists() else "does not exist"
    raise WrongUse(
        f"{key} is {name}, which {problem} (looked for {folder.absolute()}).",
        "Fix the path, or name a repository as owner/name.",
    )


def _is_repository(name: str) -> bool:
    """Return whether `name` has the form owner/name rather than that of a path."""
    owner, _, repository = name.partition("/")
    pathlike = name.startswith((".", "~")) or os.sep in repository or "\\" in name
    return bool(owner and repository and "/" not in repository and not pathlike)


def fetched(repository: str, *, revision: str | None, patterns: list[str]) -> Path:
    """Return the folder of `repository` with the files of `patterns`, downloaded if missing.

    Raises:
        WrongUse: it cannot be had; says why, and what to type.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    named = f"{repository} (revision {revision})" if revision else repository
    offline = not is_reachable()
    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=patterns, local_files_only=offline
            )
        )
    except GatedRepoError as error:
        raise WrongUse(
            f"{named} asks for an agreement before it may be downloaded.",
            f"Agree on https://huggingface.co/{repository} and log in with `hf auth login`.",
        ) from error
    except RevisionNotFoundError as error:
        raise WrongUse(
            f"{repository} has no revision {revision}.", "Fix or remove `revision`."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise WrongUse(
            f"There is no folder and no hub repository {named}.",
            "Fix pretrained_model_name_or_path; for a private repository log in first.",
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise Unreachable(
            f"The hub cannot be reached for {named}.", _by_hand(repository)
        ) from error


def fetched_file(repository: str, file: str, *, revision: str | None) -> Path | None:
    """Return one small file of `repository`, downloaded if missing; None if it is unavailable."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    offline = not is_reachable()
    try:
        return Path(hf_hub_download(repository, file, revision=revision, local_files_only=offline))
    except (HfHubHTTPError, HFValidationError, OSError):
        return None  # the caller says what that means


def is_reachable() -> bool:
    """Return whether the hub answers; asked once, and never where HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


@cache
def _answers(endpoint: str) -> bool:
    """Return whether a host answers at `endpoint`, through a proxy where one is set."""
    try:
        urlopen(Request(endpoint, method="HEAD"), timeout=ANSWER_SECONDS).close()
    except HTTPError:
        return True  # it does not like the question
    except URLError as error:
        # the hub's own client may know certificates that this one does not
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, HTTPException):  # nobody, or one who does not speak as the web does
        return False
    return True


def _by_hand(repository: str) -> str:
    from huggingface_hub import constants

    first = "Unset HF_HUB_OFFLINE, or fetch" if constants.HF_HUB_OFFLINE else "Fetch"
    return (
        f"{first} it on any machine (`hf download {repository} --local-dir FOLDER`) and set "
        "pretrained_model_name_or_path to the folder."
    )
