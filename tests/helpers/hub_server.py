"""A loopback Hub: the endpoints that huggingface_hub calls, as the real one answers them, for the real client library.

Source: huggingface_hub 2.4.0, hf_api.py (list_models, model_info, list_repo_tree, list_repo_refs, list_repo_commits),
file_download.py (get_hf_file_metadata) and utils/_http.py (hf_raise_for_status: X-Error-Code, X-Error-Message).
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

TOKEN = "hf_test-token-that-may-read-everything"
_LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".model")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_SHA = re.compile(r"[0-9a-f]{40}")
_DATE = "2026-11-01T12:00:00.000Z"


@dataclass
class Commit:
    """One commit: its id, its title, and every file that the repository then has."""

    sha: str
    title: str
    files: dict[str, bytes]
    missing_answers: int = 0
    """How many more requests for it are answered as if it were not there yet."""


@dataclass
class Repo:
    """One model repository.

    Attributes:
        refs: full name (`refs/heads/main`) → commit id.
        private: 401 without a token that may read it, and 404 with another one.
        gated: its files answer 403 (401 without a token) unless the token was granted access.
        granted: tokens that may read it.
        disabled: every request is answered 403.
    """

    repo_id: str
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    disabled: bool = False
    granted: frozenset[str] = frozenset({TOKEN})

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, tag, full ref or (abbreviated) id."""
        for ref in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        matching = [commit for sha, commit in self.commits.items() if len(revision) >= 7 and sha.startswith(revision)]
        return matching[0] if len(matching) == 1 else None


@dataclass(frozen=True)
class Seen:
    """A request that was answered: what was asked for, and how many bytes of a body were sent."""

    method: str
    path: str
    range: str
    token: str
    status: int
    sent_bytes: int


class HubServer:
    """A Hub on loopback, in a thread.

    Attributes:
        requests: what was asked, oldest first.
        ignore_ranges: files are sent whole, with 200, whatever range is asked for.
        corrupt: paths of files whose bytes are sent with the last one changed.
    """

    def __init__(self) -> None:
        self._repos: dict[str, Repo] = {}
        self._blobs: dict[str, bytes] = {}
        self._limited, self._retry_after_s = 0, 0
        self._lock = threading.Lock()
        # Two, because large files come from another host, which must not be shown the token.
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self)) for _ in range(2)]
        self.requests: list[Seen] = []
        self.ignore_ranges = False
        self.corrupt: set[str] = set()

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:<port>`: what HF_ENDPOINT would be."""
        return f"http://127.0.0.1:{self._servers[0].server_address[1]}"

    @property
    def cdn(self) -> str:
        """Where large files are sent from."""
        return f"http://127.0.0.1:{self._servers[1].server_address[1]}"

    def start(self) -> None:
        """Answer from now on."""
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), name="hub", daemon=True).start()

    def stop(self) -> None:
        """Answer no more."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    # What tests do

    def add_repo(self, repo_id: str, **kind: Any) -> Repo:
        """Make an empty repository; `private`, `gated`, `granted`, `disabled` as in `Repo`."""
        self._repos[repo_id] = Repo(repo_id, **kind)
        return self._repos[repo_id]

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | Path | None],
        *,
        ref: str = "refs/heads/main",
        title: str = "Upload model",
        missing_answers: int = 0,
    ) -> str:
        """Add a commit on top of `ref` (None removes a file), and let the ref point at it; returns its id."""
        repo = self._repos.get(repo_id) or self.add_repo(repo_id)
        parent = repo.refs.get(ref) or repo.refs.get("refs/heads/main")
        now = dict(repo.commits[parent].files) if parent else {}
        for path, content in files.items():
            if content is None:
                now.pop(path)
            else:
                now[path] = content.read_bytes() if isinstance(content, Path) else content
        sha = hashlib.sha1(f"{repo_id} {len(repo.commits)} {title}".encode(), usedforsecurity=False).hexdigest()
        with self._lock:
            self._blobs |= {hashlib.sha256(content).hexdigest(): content for content in now.values()}
            repo.commits[sha] = Commit(sha, title, now, missing_answers)
            repo.refs[ref] = sha
        return sha

    def commit_directory(self, repo_id: str, directory: Path, *, subfolder: str = "", **options: Any) -> str:
        """As `commit`, of all files of a directory."""
        prefix = f"{subfolder}/" if subfolder else ""
        paths = sorted(path for path in directory.rglob("*") if path.is_file())
        return self.commit(
            repo_id, {f"{prefix}{path.relative_to(directory).as_posix()}": path for path in paths}, **options
        )

    def tag(self, repo_id: str, name: str, sha: str) -> None:
        """Let a tag point at a commit."""
        self._repos[repo_id].refs[f"refs/tags/{name}"] = sha

    def limit_rate(self, answers: int, *, retry_after_s: int = 0) -> None:
        """Answer the next requests with 429."""
        self._limited, self._retry_after_s = answers, retry_after_s

    def credential(self, token: str = TOKEN) -> dict[str, str]:
        """What a credentials file says of this server."""
        return {"kind": "hub", "token": token, "endpoint": self.endpoint}

    def sent_bytes(self) -> int:
        """Bytes of files that were sent."""
        return sum(each.sent_bytes for each in self.requests)

    # What the handler asks

    def is_limited(self) -> int | None:
        """Seconds for Retry-After if this request is one too many, else None."""
        with self._lock:
            if not self._limited:
                return None
            self._limited -= 1
            return self._retry_after_s

    def repo_at_start_of(self, parts: list[str]) -> tuple[Repo | None, list[str]]:
        """The repository that a path names, and the rest of the path."""
        for length in (2, 1):
            repo = self._repos.get("/".join(parts[:length]))
            if repo is not None:
                return repo, parts[length:]
        return None, parts[2:]

    def listed(self, query: Mapping[str, list[str]], token: str) -> tuple[list[dict[str, Any]], bool]:
        """A page of the repositories of an author that this token may see, and whether more follow; it is short."""
        [author], [limit], [cursor] = query["author"], query["limit"], query.get("cursor", [""])
        repos = [each for name, each in sorted(self._repos.items()) if name.startswith(f"{author}/") and name > cursor]
        seen = [each.repo_id for each in repos if not each.private or token in each.granted]
        length = min(int(limit), 2)
        page = [{"_id": "6502d1e0c0ffee0000000000", "id": each, "modelId": each} for each in seen[:length]]
        return page, len(seen) > length

    def blob(self, sha256: str) -> bytes | None:
        """An LFS object."""
        return self._blobs.get(sha256)


class _Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        named = {"X-Error-Code": code} if code else {}
        self.headers = {**named, "X-Error-Message": message, **headers}


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_GET(self) -> None:
        """Answer with the body."""
        self._range, self._token = self.headers.get("Range", ""), ""
        try:
            self._answer()
        except _Refused as refused:
            body = json.dumps({"error": str(refused)}).encode()
            self._send(refused.status, body, {"Content-Type": "application/json", **refused.headers})

    do_HEAD = do_GET
    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on standard error."""

    def _answer(self) -> None:
        self._token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        retry_after_s = self.hub.is_limited()
        if retry_after_s is not None:
            reset = {"ratelimit": f'"api";r=0;t={retry_after_s}', "Retry-After": str(retry_after_s)}
            raise _Refused(HTTPStatus.TOO_MANY_REQUESTS, "", "We had to rate limit you", **reset)
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[0] == "cdn":
            return self._send_range(self.hub.blob(parts[1]) or b"", {}, path=parts[2] if len(parts) > 2 else "")
        if parts == ["api", "models"]:
            query = parse_qs(url.query)
            page, more = self.hub.listed(query, self._token)
            following = urlencode(query | {"cursor": page[-1]["id"]}, doseq=True) if more else ""
            link = {"Link": f'<{self.hub.endpoint}/api/models?{following}>; rel="next"'} if more else {}
            return self._send_json(page, link)
        if parts[:2] == ["api", "models"]:
            repo, rest = self.hub.repo_at_start_of(parts[2:])
            return self._answer_api(self._checked(repo), rest or ["revision", "main"], parse_qs(url.query), body)
        repo, rest = self.hub.repo_at_start_of(parts)
        if rest[:1] == ["resolve"] and len(rest) > 2:
            return self._answer_resolve(self._checked(repo, files=True), rest[1], "/".join(rest[2:]))
        raise _Refused(HTTPStatus.NOT_FOUND, "", "Sorry, we can't find the page you are looking for.")

    def _checked(self, repo: Repo | None, *, files: bool = False) -> Repo:
        allowed = repo is not None and self._token in repo.granted
        if repo is None or (repo.private and not allowed):
            if self._token:
                raise _Refused(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
            raise _Refused(HTTPStatus.UNAUTHORIZED, "RepoNotFound", "Invalid username or password.")
        if repo.disabled:
            raise _Refused(HTTPStatus.FORBIDDEN, "", "Access to this resource is disabled.")
        if repo.gated and files and not allowed:
            status = HTTPStatus.FORBIDDEN if self._token else HTTPStatus.UNAUTHORIZED
            raise _Refused(status, "GatedRepo", f"Access to model {repo.repo_id} is restricted.")
        return repo

    def _commit(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None or commit.missing_answers:
            if commit is not None:
                commit.missing_answers -= 1
            raise _Refused(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _answer_api(self, repo: Repo, rest: list[str], query: dict[str, list[str]], body: bytes) -> None:
        kind, revision = rest[0], rest[1] if len(rest) > 1 else "main"
        if kind == "refs":
            return self._send_json(_refs_of(repo))
        commit = self._commit(repo, revision)
        if kind == "commits":
            return self._send_json(_history_of(repo, commit), {"X-Total-Count": str(len(repo.commits))})
        if kind == "tree":
            return self._send_json(_tree_of(commit, "/".join(rest[2:]), deep=query.get("recursive") == ["true"]))
        if kind == "paths-info":
            wanted = set(_wanted_paths(body, self.headers.get("Content-Type", "")))
            return self._send_json([_entry(path, commit.files[path]) for path in sorted(wanted & set(commit.files))])
        return self._send_json(_info_of(repo, commit, blobs=query.get("blobs") in (["true"], ["True"])))

    def _answer_resolve(self, repo: Repo, revision: str, path: str) -> None:
        commit = self._commit(repo, revision)
        if path not in commit.files:
            raise _Refused(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit.sha})
        content = commit.files[path]
        headers = {"X-Repo-Commit": commit.sha}
        if not _is_lfs(path):
            return self._send_range(content, {**headers, "ETag": f'"{_blob_id(content)}"'}, path=path)
        sha256 = hashlib.sha256(content).hexdigest()
        linked = {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(len(content)), "ETag": f'"{sha256}"'}
        location = f"{self.hub.cdn}/cdn/{sha256}/{path.rpartition('/')[2]}?X-Amz-Signature=secret-of-a-link"
        return self._send(HTTPStatus.FOUND, b"", {**headers, **linked, "Location": location})

    def _send_range(self, content: bytes, headers: Mapping[str, str], *, path: str) -> None:
        if path in self.hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = _RANGE.fullmatch(self._range)
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers}
        if asked is None or self.hub.ignore_ranges:
            return self._send(HTTPStatus.OK, content, headers)
        first = int(asked[1]) if asked[1] else max(0, len(content) - int(asked[2]))
        last = min(int(asked[2]), len(content) - 1) if asked[1] and asked[2] else len(content) - 1
        if first >= len(content):
            out = {"Content-Range": f"bytes */{len(content)}"}
            return self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", out)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self._send(HTTPStatus.PARTIAL_CONTENT, content[first : last + 1], headers)

    def _send_json(self, answer: object, headers: Mapping[str, str] | None = None) -> None:
        self._send(HTTPStatus.OK, json.dumps(answer).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: HTTPStatus, body: bytes, headers: Mapping[str, str]) -> None:
        sent = len(body) if self.command != "HEAD" else 0
        self.hub.requests.append(Seen(self.command, self.path, self._range, self._token, status, sent))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if sent:
            self.wfile.write(body)


def _handler_of(hub: HubServer) -> type[_Handler]:
    return type("Handler", (_Handler,), {"hub": hub})


def _is_lfs(path: str) -> bool:
    return path.endswith(_LFS_SUFFIXES)


def _blob_id(content: bytes) -> str:
    """What git calls a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _lfs(content: bytes, *, key: str) -> dict[str, object]:
    return {key: hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": _blob_id(content), "size": len(content), "path": path}
    return {**entry, "lfs": _lfs(content, key="oid")} if _is_lfs(path) else entry


def _tree_of(commit: Commit, folder: str, *, deep: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    below = sorted(path for path in commit.files if path.startswith(prefix))
    if folder and not below:
        raise _Refused(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{folder} does not exist on the revision")
    files = [path for path in below if deep or "/" not in path[len(prefix) :]]
    folders = sorted({path[len(prefix) :].split("/")[0] for path in below if path not in files})
    listed = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": prefix + each} for each in folders]
    return listed + [_entry(path, commit.files[path]) for path in files]


def _info_of(repo: Repo, commit: Commit, *, blobs: bool) -> dict[str, Any]:
    siblings: list[dict[str, Any]] = []
    for path, content in sorted(commit.files.items()):
        sibling: dict[str, Any] = {"rfilename": path}
        if blobs:
            sibling |= {"size": len(content), "blobId": _blob_id(content)}
            sibling |= {"lfs": _lfs(content, key="sha256")} if _is_lfs(path) else {}
        siblings.append(sibling)
    return {
        "_id": "6502d1e0c0ffee0000000000",
        "id": repo.repo_id,
        "modelId": repo.repo_id,
        "sha": commit.sha,
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "disabled": repo.disabled,
        "tags": ["peft"],
        "downloads": 0,
        "likes": 0,
        "lastModified": _DATE,
        "createdAt": _DATE,
        "siblings": siblings,
    }


def _refs_of(repo: Repo) -> dict[str, list[dict[str, str]]]:
    def listed(prefix: str) -> list[dict[str, str]]:
        named = {ref: sha for ref, sha in repo.refs.items() if ref.startswith(prefix)}
        return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha} for ref, sha in named.items()]

    return {"branches": listed("refs/heads/"), "tags": listed("refs/tags/"), "converts": listed("refs/convert/")}


def _history_of(repo: Repo, head: Commit) -> list[dict[str, Any]]:
    """All commits up to `head`, newest first: the history is taken to be one line."""
    shas = list(repo.commits)
    line: Iterable[str] = reversed(shas[: shas.index(head.sha) + 1])
    return [
        {"id": sha, "title": repo.commits[sha].title, "message": "", "authors": [{"user": "tests"}], "date": _DATE}
        for sha in line
    ]


def _wanted_paths(body: bytes, content_type: str) -> list[str]:
    if "json" in content_type:
        return list(json.loads(body)["paths"])
    return parse_qs(body.decode()).get("paths", [])
