"""HTTP by hand: clients that misbehave."""

import json
import socket

from tests.serving.fakes import KEY

MODEL = "fake/korean"


class Connection:
    """A socket to a server, with small buffers where a slow reader is to be felt."""

    def __init__(self, port, buffer=None):
        self.socket = socket.socket()
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(15)
        self.socket.connect(("127.0.0.1", port))

    def send(self, data):
        self.socket.sendall(data)

    def ask(self, body, path="/v1/completions", **headers):
        """Sends a whole request with a JSON body."""
        data = body if isinstance(body, bytes) else json.dumps({"model": MODEL, **body}).encode()
        self.head(path, **{"content-length": len(data), **headers})
        self.send(data)
        return self

    def head(self, path, method="POST", **headers):
        every = {"host": "localhost", "content-type": "application/json", "authorization": f"Bearer {KEY}", **headers}
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in every.items() if value is not None]
        self.send("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode())

    def answer(self):
        """(status, decoded body) of a response that has a length."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        headers = {name.lower(): value.strip() for name, _, value in
                   (line.partition(":") for line in head.decode().split("\r\n")[1:])}  # fmt: skip
        while len(body) < int(headers["content-length"]):
            body += self._more()
        return int(head.split()[1]), json.loads(body) if "json" in headers["content-type"] else body.decode()

    def rest(self):
        """All until the server closes."""
        data = b""
        while more := self.socket.recv(65536):
            data += more
        return data

    def close(self):
        self.socket.close()

    def _more(self):
        data = self.socket.recv(65536)
        assert data, "closed in the middle of an answer"
        return data


def fetched(port, path, **headers):
    """(status, body) of a GET."""
    connection = Connection(port)
    connection.head(path, "GET", **headers)
    try:
        return connection.answer()
    finally:
        connection.close()


def asked(port, body, **arguments):
    """(status, body) of a POST."""
    connection = Connection(port).ask(body, **arguments)
    try:
        return connection.answer()
    finally:
        connection.close()
