"""A small stateful HTTP server for tests: routes to methods, a bearer's key, and faults on order."""

import json
import threading
from collections.abc import Iterable
from typing import Any

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response


class HttpServer:
    """A provider's API is a subclass: `routes` are (verb, path, method's name). `faults`: statuses to answer next, of which
    negative ones are answered after the request is carried out, and 1 cuts the connection."""

    routes: tuple[tuple[str, str, str], ...] = ()
    key = "canary-5f1d9c30"

    def __init__(self) -> None:
        self.faults: list[int] = []
        self.calls: list[str] = []
        self._map = Map([Rule(path, methods=[verb], endpoint=name) for verb, path, name in self.routes])
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HttpServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        request = Request(environ)
        try:
            name, found = self._map.bind_to_environ(environ).match()
            answer = self._answer(request, name, found)
        except HTTPException as error:
            answer = refused(error.code or 500, error.description or "")
        return answer(environ, start)

    def _answer(self, request: Request, name: str, found: dict[str, Any]) -> Response:
        self.calls.append(name)
        if name != "sign_in" and request.headers.get("Authorization") != f"Bearer {self.key}":
            return refused(401, "the key is wrong")
        fault = self.faults.pop(0) if self.faults else 0
        if fault == 1:
            raise ConnectionAbortedError
        if fault > 0:
            return refused(fault, "a fault that the test ordered")
        made = getattr(self, name)(request, **found)
        if fault < 0:
            return refused(-fault, "the answer is lost")
        return made if isinstance(made, Response) else Response(json.dumps(made), content_type="application/json")


def refused(status: int, message: str) -> Response:
    body = json.dumps({"error": {"message": message, "code": status, "status": "REFUSED"}})
    return Response(body, status, content_type="application/json")
