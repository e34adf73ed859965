"""A mirror of Hugging Face's hub on this machine, as far as a download needs it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40


@contextmanager
def mirror(repository: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder as a repository; yields the address, and a list that grows by every file that is fetched."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def answer(self) -> None:
            path = self.path.split("?")[0]
            resolved = path.removeprefix(f"/{repository}/resolve/").partition("/")[2]
            if path in (f"/api/models/{repository}/tree/{revision}" for revision in ("main", COMMIT)):
                entries = [
                    {"type": "file", "path": name, "size": len(data), "oid": sha256(data).hexdigest()}
                    for name, data in files.items()
                ]
                self.reply(json.dumps(entries).encode(), {"Content-Type": "application/json"})
            elif path == f"/api/models/{repository}/revision/main":
                siblings = [{"rfilename": name} for name in files]
                info = {"id": repository, "sha": COMMIT, "siblings": siblings}
                self.reply(json.dumps(info).encode(), {"Content-Type": "application/json"})
            elif resolved in files:
                if self.command == "GET":
                    fetched.append(resolved)
                etag = f'"{sha256(files[resolved]).hexdigest()}"'
                self.reply(files[resolved], {"ETag": etag, "X-Repo-Commit": COMMIT})
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in path else "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def reply(self, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_GET = do_HEAD = answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        server.server_close()
