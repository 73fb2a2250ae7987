"""Wheels without content, a folder of them, and a package index that serves it."""

import base64
import hashlib
import http.server
import ssl
import threading
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit


def normal(name: str) -> str:
    """The form of a package's name that indexes and lock files use."""
    return name.lower().replace("_", "-").replace(".", "-")


def make_wheel(
    folder: Path, name: str, version: str, requires: Iterable[str] = (), extras: Iterable[str] = ()
) -> str:
    """Writes a wheel that holds nothing but its metadata; returns its SHA-256 in hex."""
    stem = f"{normal(name).replace('-', '_')}-{version}"
    fields = [
        f"Name: {name}",
        f"Version: {version}",
        *(f"Provides-Extra: {extra}" for extra in extras),
        *(f"Requires-Dist: {required}" for required in requires),
    ]
    contents = {
        "METADATA": "\n".join(["Metadata-Version: 2.1", *fields, ""]),
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        record = ""
        for file, text in contents.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
            member = f"{stem}.dist-info/{file}"
            record += f"{member},sha256={digest.decode().rstrip('=')},{len(text.encode())}\n"
            wheel.writestr(member, text)
        wheel.writestr(f"{stem}.dist-info/RECORD", f"{record}{stem}.dist-info/RECORD,,\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


class PackageIndex:
    """A package index on loopback that serves a folder of wheels.

    Attributes:
        url: the address that pip and uv are given.
        address: host and port, which also serve as an HTTP proxy to any index.
        asked: the paths of all requests, in order.
    """

    def __init__(self, folder: Path, tls: ssl.SSLContext | None) -> None:
        self.asked: list[str] = []
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                index.asked.append(self.path)
                # Through a proxy the path is a whole address.
                *_, kind, name = urlsplit(self.path).path.rstrip("/").rsplit("/", 2)
                wheels = [
                    wheel
                    for wheel in sorted(folder.glob("*.whl"))
                    if name in (wheel.name, normal(wheel.name.partition("-")[0]))
                ]
                if not wheels:
                    self.send_error(404)
                    return
                page = "".join(f'<a href="/wheels/{w.name}">{w.name}</a>\n' for w in wheels)
                body = page.encode() if kind == "simple" else wheels[0].read_bytes()
                self.send_response(200)
                mime = "text/html" if kind == "simple" else "application/octet-stream"
                self.send_header("Content-Type", mime)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # a client that does not trust us hangs up
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        port = self.server.server_address[1]
        scheme = "http" if tls is None else "https"
        self.address = f"127.0.0.1:{port}"
        self.url = f"{scheme}://{self.address}/simple"


@contextmanager
def package_index(folder: Path, tls: ssl.SSLContext | None = None) -> Iterator[PackageIndex]:
    """Serves the wheels of `folder` for as long as the block lasts."""
    index = PackageIndex(folder, tls)
    thread = threading.Thread(target=index.server.serve_forever)
    thread.start()
    try:
        yield index
    finally:
        index.server.shutdown()
        thread.join()
        index.server.server_close()
