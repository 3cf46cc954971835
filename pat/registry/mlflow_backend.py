"""Names, versions and aliases in MLflow's model registry: an SQLite file, another database, or a server.

    name     registered model        notes: its tags
    version  model version           tags, set in the transaction that makes it
    alias    registered model alias

The only file that imports mlflow.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pat.common import secrets
from pat.common.progress_bar import said_if_slow
from pat.registry.backend import BackendError, Entry

FILE = "registry.db"
PAGE = 1000
RETRIES = "3"  # of a request that is not answered, 13 seconds in all; MLflow's 7 are four minutes of silence
_USER, _MORE = r"[^/\s@:\[]*", r"(?:[^/?#\s@]*@)*"  # a password may have an @, too
VARIABLES = ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI")


def address(given: str | None, directory: Path) -> str:
    """The URI: the given one, the environment's, or that of an SQLite file in the directory. ValueError."""
    uri = next(filter(None, [given, *map(os.environ.get, VARIABLES)]), None)
    if uri is None:
        if "?" in str(directory.resolve()):
            raise ValueError(f"--dir {directory} has a '?' in its path, which ends an SQLite URI: choose another")
        return f"sqlite:///{(directory / FILE).resolve()}"
    if urlsplit(uri).scheme in ("", "file"):
        raise ValueError(
            f"{redacted(uri)} is a folder, where MLflow writes without transactions: give a database or a server, such "
            "as sqlite:///FILE, postgresql+psycopg://USER@HOST/DATABASE or http://HOST:5000"
        )
    return uri


def redacted(text: str) -> str:
    """A URI, or a text with some, without credentials. SQLAlchemy takes all up to an @ for a password, a / included; in
    http, a number before a / is a port."""
    text = re.sub(rf"(?i)(?<!http)(?<!https)(://)({_USER}(?::[^@\n]*)?@{_MORE})", r"\1***@", text)
    text = re.sub(rf"(?i)(https?://)({_USER}(?::(?!\d+[/?#])[^@\s]*)?@{_MORE})", r"\1***@", text)
    return secrets.in_query(text, "***")


class MlflowBackend:
    """A `Backend` on MLflow."""

    def __init__(self, uri: str, new: bool = False) -> None:
        """`new`: make an SQLite file that is not there yet; otherwise that is a ValueError."""
        self.uri = uri
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # nothing is sent anywhere but to the URI
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", RETRIES)
        with said_if_slow("starting MLflow"):
            self._connect(new)

    def _connect(self, new: bool) -> None:
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise ValueError(f"pat registry needs mlflow: pip install 'pat-deepspeed[registry]' ({error})") from error
        self._failure: type[Exception] = MlflowException
        for name in ("mlflow", "alembic"):  # long traces; `_said` reports the important part once
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if self.uri.startswith("sqlite:///"):
            place, _, query = self.uri.removeprefix("sqlite:///").partition("?")
            self._require(Path(place), MlflowClient, new, query)
        with self._said():
            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def _require(self, file: Path, client: Any, new: bool, query: str) -> None:
        """The database is created beside its place and renamed: a kill leaves either all its tables or no file."""
        if file.exists():
            return
        if not new:
            raise ValueError(
                f"there is no registry in {file.parent}: `pat registry add` makes it, or give --dir or --uri"
            )
        part = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        part.unlink(missing_ok=True)
        try:
            with self._said():
                uri = f"sqlite:///{part}" + f"?{query}" * bool(query)
                client(tracking_uri=uri, registry_uri=uri).search_registered_models()
            with contextlib.closing(sqlite3.connect(part)) as made:
                made.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            os.replace(part, file)
        finally:
            part.unlink(missing_ok=True)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(model.name for model in self._pages("search_registered_models"))

    def versions(self, name: str) -> list[Entry]:
        """Those of a name, oldest first."""
        found = self._pages("search_model_versions", filter_string=f"name='{name}'")
        entries = [Entry(int(one.version), dict(one.tags), one.creation_timestamp / 1000) for one in found]
        return sorted(entries, key=lambda entry: entry.number)

    def add(self, name: str, source: str, tags: Mapping[str, str]) -> int:
        """A new version."""
        with self._said("RESOURCE_ALREADY_EXISTS"):
            self._client.create_registered_model(name)
        with self._said():
            return int(self._client.create_model_version(name, source, tags=dict(tags)).version)
        raise AssertionError

    def aliases(self, name: str) -> dict[str, int]:
        """Alias -> version."""
        with self._said("RESOURCE_DOES_NOT_EXIST"):
            return {alias: int(number) for alias, number in self._client.get_registered_model(name).aliases.items()}
        return {}

    def set_alias(self, name: str, alias: str, number: int) -> None:
        """Move an alias."""
        with self._said():
            self._client.set_registered_model_alias(name, alias, str(number))

    def notes(self, name: str) -> dict[str, str]:
        """The tags of the registered model."""
        with self._said("RESOURCE_DOES_NOT_EXIST"):
            return dict(self._client.get_registered_model(name).tags)
        return {}

    def note(self, name: str, key: str, value: str | None) -> None:
        """Set or delete a tag of the registered model."""
        with self._said():
            if value is None:
                self._client.delete_registered_model_tag(name, key)
            else:
                self._client.set_registered_model_tag(name, key, value)

    def _pages(self, search: str, **options: Any) -> list[Any]:
        found: list[Any] = []
        token: str | None = None
        while True:
            with self._said():
                page: Any = getattr(self._client, search)(max_results=PAGE, page_token=token, **options)
                found += page
                token = page.token
            if not token:
                return found

    @contextlib.contextmanager
    def _said(self, passed_over: str = "") -> Iterator[None]:
        """Turn errors of MLflow and the database into one line, except the code that is `passed_over`."""
        try:
            yield
        except self._failure as error:
            if passed_over and getattr(error, "error_code", None) == passed_over:
                return
            raise self._error(error) from None  # the chain holds the URI, with a password perhaps
        except OSError:
            raise
        except Exception as error:  # sqlalchemy's, where MLflow lets them through
            raise self._error(error) from None

    def _error(self, error: Exception) -> BackendError:
        said = (str(error).strip() or type(error).__name__).splitlines()[0].replace(self.uri, redacted(self.uri))
        return BackendError(f"the registry at {redacted(self.uri)} failed: {redacted(said)}")
