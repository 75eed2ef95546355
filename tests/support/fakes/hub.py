"""A Hugging Face Hub on loopback, for `huggingface_hub.snapshot_download` as it is installed.

The client reads its settings once, on import. So code under test runs in a process of its own, with
`environment`.

    GET        /api/models/{id}[/revision/{revision}]   commit and file names
    GET        /api/models/{id}/tree/{revision}         files with their sizes
    HEAD, GET  /{id}/resolve/{revision}/{file}          a file, or the part that a Range asks for

Every commit that was ever published can be asked for by its hash, the latest one also as `main`,
and some by a tag.
What the real Hub adds and this one does not have: redirects to another host for large files, the
Xet protocol, pages of long listings.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fakes.loopback import Loopback

_API = re.compile(r"/api/models/(?P<repo_id>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/(?P<revision>[^/]+))?")
_RESOLVE = re.compile(r"/(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_DECIDES_FOR_CLIENT = re.compile(r"HF_|HUGGING_?FACE|TRANSFORMERS_|\w+_proxy$", re.IGNORECASE)

TOKEN = "hf_the_only_valid_token"

Files = dict[str, bytes]


@dataclass(frozen=True)
class Request:
    """One request, as it arrived; `first_byte` is where its Range header begins."""

    method: str
    path: str
    first_byte: int = 0


class FakeHub(Loopback):
    """Serves while used as a context manager; its public attributes say what it refuses."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.outage: int | None = None
        """Answer everything with this status."""
        self.hangs_up = False
        """Close every connection without an answer."""
        self.breaks_off: dict[str, int] = {}
        """File name -> after how many bytes its next download ends; used up by that download."""
        self.commits: dict[str, dict[str, Files]] = {}
        """Model -> hash -> files, the latest commit last."""
        self.tags: dict[str, str] = {}
        """Name -> hash, of any model."""
        self.endpoint = self._serve(_Handler, hub=self)

    def publish(self, repo_id: str, folder: Path) -> str:
        """Make the files of `folder` the latest commit of a model; returns the commit's hash."""
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        commit = hashlib.sha1(b"".join(name.encode() + content for name, content in files.items())).hexdigest()
        commits = self.commits.setdefault(repo_id, {})
        commits.pop(commit, None)
        commits[commit] = files
        return commit

    def environment(self, home: Path, **settings: str) -> dict[str, str]:
        """This process's environment with the client's settings for this Hub, and its cache in
        `home`."""
        inherited = {name: value for name, value in os.environ.items() if not _DECIDES_FOR_CLIENT.match(name)}
        known = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        return {**inherited, **known, **settings}

    def downloads(self) -> list[str]:
        """The files whose content was asked for, in order."""
        matches = [_RESOLVE.fullmatch(request.path) for request in self.requests if request.method == "GET"]
        return [match["file"] for match in matches if match]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # the client keeps its connections, as with the real Hub
    hub: FakeHub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(Request(self.command, path, self._first_byte()))
        if self.hub.hangs_up:
            self.close_connection = True
        elif self.hub.outage is not None:
            self._refuse(self.hub.outage, "", "Come back later.")
        elif match := _API.fullmatch(path) or _RESOLVE.fullmatch(path):
            self._answer(**{"what": None, "file": None, **match.groupdict()})
        else:
            self._refuse(404, "", "Sorry, we can't find the page you are looking for.")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, repo_id: str, what: str | None, revision: str | None, file: str | None) -> None:
        credentials = self.headers.get("Authorization")
        if credentials not in (None, f"Bearer {TOKEN}"):
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        commits = self.hub.commits.get(repo_id)
        if commits is None or (credentials is None and repo_id in self.hub.private):
            # The code goes with 401 too: the client guesses it from the status for https addresses
            # only.
            return self._refuse(404 if credentials else 401, "RepoNotFound", "Invalid username or password.")
        commit = [*commits][-1] if revision in (None, "main") else self.hub.tags.get(revision, revision)
        if commit not in commits:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = commits[commit]
        if file is not None:
            return self._resolve(repo_id, commit, files, file)
        sizes = [{"type": "file", "path": it, "size": len(files[it]), "oid": _blob_id(files[it])} for it in files]
        info = {"id": repo_id, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        body = json.dumps(sizes if what == "tree" else info).encode()
        return self._send(200, body, {"Content-Type": "application/json"})

    def _resolve(self, repo_id: str, commit: str, files: Files, file: str) -> None:
        if repo_id in self.hub.gated:
            return self._refuse(403, "GatedRepo", f"Access to model {repo_id} is restricted.")
        if file not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        content, first = files[file], self._first_byte()
        headers = {"ETag": f'"{_blob_id(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        cut = self.hub.breaks_off.pop(file, None) if self.command == "GET" else None
        return self._send(206 if first else 200, content[first:], headers, cut)

    def _first_byte(self) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(asked[1]) if asked else 0

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, content: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True


def _blob_id(content: bytes) -> str:
    """Return the id that git gives the file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
