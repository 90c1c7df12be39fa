"""A small server that speaks the chat-completions protocol, started like vLLM or SGLang: what their clients are tested on.

What it does is in the last message: `die`, `hang`, `too long`, `busy`, `broken`, `garbage`, `tool`, `cut`,
`think`; any other text comes back behind the name of the model, `until FILE` once there is that file. Standard library
alone, so that it starts at once.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOO_LONG = "This model's maximum context length is 2048 tokens. However, you requested 4000 tokens."

FIELDS = "[[ ## answer ## ]]\nshort and good\n\n[[ ## completed ## ]]"
THOUGHT = "<think>\n\n</think>\n\nyes"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits for the client's acknowledgement of its header
    seen: list[dict[str, Any]] = []  # noqa: RUF012 (one server a process)
    gone: list[str] = []  # noqa: RUF012
    models: dict[str, str] = {}  # noqa: RUF012
    adapters: dict[str, str] = {}  # noqa: RUF012
    owner, key, healthy = "vllm", "", True

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer({} if self.healthy else "starting", 200 if self.healthy else 503)
        elif self.path == "/v1/models" and self.allowed():
            base = [entry(name, path, self.owner) for name, path in self.models.items()]
            worn = [entry(n, p, self.owner) | {"parent": base[0]["id"]} for n, p in self.adapters.items()]
            self.answer({"object": "list", "data": base + worn})
        elif self.path == "/seen":
            self.answer({"seen": self.seen, "gone": self.gone, "argv": sys.argv, "environment": dict(os.environ)})
        else:
            self.answer({"error": {"message": f"nothing at {self.path}"}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, "body": body, "headers": dict(self.headers)})
        if self.path.endswith("/load_lora_adapter"):
            self.adapters[body["lora_name"]] = body["lora_path"]
            self.answer("Success")
        elif self.allowed():
            self.chat(body, body["messages"][-1]["content"])

    def allowed(self) -> bool:
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            self.answer({"error": {"message": f"Wrong key: {self.headers.get('Authorization')}"}}, 401)
            return False
        return True

    def chat(self, body: dict[str, Any], text: str) -> None:
        if text == "die":
            say("FATAL: out of memory, token hf_abcdefghijklmnop")
            os._exit(3)
        refusals = {"too long": (400, TOO_LONG), "busy": (429, "busy"), "broken": (500, "engine failed")}
        if text in refusals:
            status, message = refusals[text]
            self.answer({"object": "error", "message": message, "code": status}, status)
        elif text == "garbage":
            self.answer("<html>a proxy</html>", kind="text/html")
        elif text == "hang":
            self.wait_for_the_client_to_go()
        elif body.get("stream"):
            self.stream(body, text)
        else:
            while text.startswith("until ") and not Path(text[6:]).exists():
                time.sleep(0.005)
            content = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>' if text == "tool" else text
            content = fixed(text) or f"{body['model']}|{content}"
            self.answer(completion(body, '{"answer": "as asked"}' if "response_format" in body else content))

    def wait_for_the_client_to_go(self) -> None:
        self.connection.settimeout(20)
        if self.connection.recv(1) == b"":
            self.gone.append("hang")
        self.close_connection = True

    def stream(self, body: dict[str, Any], text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        words = [body["model"], "|", *text.split(" ")]
        if whole := fixed(text):
            words = [whole[at : at + 3] for at in range(0, len(whole), 3)]
        try:
            for word in words:
                self.event({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
                time.sleep(0.005)
            if text == "cut short":
                return
            if text == "die later":
                os._exit(3)
            while text == "for ever":
                self.event({"choices": [{"index": 0, "delta": {"content": "more"}, "finish_reason": None}]})
                time.sleep(0.02)
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self.event({"choices": [], "usage": usage(len(words))})
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            self.gone.append(text)
        self.close_connection = True

    def event(self, part: dict[str, Any]) -> None:
        chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", **part}
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.flush()

    def answer(self, body: Any, status: int = 200, kind: str = "application/json") -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class ManyAtOnce(ThreadingHTTPServer):
    """A server that many threads may call at the same moment.

    The standard library lets five connections wait; where more come, Linux answers with SYN cookies and may reset some.
    """

    request_queue_size = 128


def fixed(text: str) -> str:
    """The answer where the text asks for one of its own, as ChatAdapter does for the field `answer`."""
    return FIELDS if "[[ ## answer ## ]]" in text else THOUGHT if text == "think" else ""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def entry(name: str, root: str, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "root": root, "owned_by": owner, "parent": None, "max_model_len": 2048}


def usage(tokens: int) -> dict[str, Any]:
    cached = {"cached_tokens": 4}
    return {
        "prompt_tokens": 7,
        "completion_tokens": tokens,
        "total_tokens": 7 + tokens,
        "prompt_tokens_details": cached,
    }


def completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "message": message}
    if body.get("logprobs"):
        scored = [{"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}]
        choice["logprobs"] = {"content": scored, "refusal": None}
    shell = {"id": "c1", "object": "chat.completion", "created": 1, "model": body["model"]}
    return {**shell, "choices": [choice], "usage": usage(3)}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    for name in ("--host", "--port", "--served-model-name", "--model-path", "--key", "--taken-once", "--owner"):
        parser.add_argument(name, default="")
    parser.add_argument("--lora-modules", nargs="*", type=json.loads, default=[])
    parser.add_argument("--lora-paths", nargs="*", default=[])
    for name in ("--die-at-start", "--never-healthy", "--worker", "--stubborn"):
        parser.add_argument(name, action="store_true")
    return parser.parse_known_args()[0]


def main() -> None:
    args = parsed()
    if args.die_at_start:
        sys.exit("ValueError: no room for the KV cache")
    if args.taken_once and not Path(args.taken_once).exists():
        Path(args.taken_once).touch()
        sys.exit("OSError: [Errno 98] error while attempting to bind on address: address already in use")
    if args.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if args.worker:
        subprocess.Popen(["sleep", "300"])
    Handler.healthy, Handler.key = not args.never_healthy, args.key
    Handler.owner = args.owner or "vllm"
    Handler.models = {
        args.served_model_name or "base": args.model_path or (args.words[1] if args.words[1:] else "base")
    }
    Handler.adapters = {a["name"]: a["path"] for a in args.lora_modules}
    Handler.adapters |= dict(each.split("=", 1) for each in args.lora_paths)
    server = ManyAtOnce((args.host, int(args.port)), Handler)
    say(f"listening on {server.server_port}")
    server.serve_forever()


if __name__ == "__main__":
    main()
