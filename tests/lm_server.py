"""Real servers for the tests of language models: any LM behind the OpenAI wire format, and one that says exactly what a test wants.

Alone it serves letters in a process of its own: python tests/lm_server.py PORT [FAIL]."""
import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from designloop.lm.protocol import Completion, FunctionLM
from designloop.lm.server import Faults, Server


def words(prompt, rng):
    "A reply that depends on the prompt and on chance, ends with a number, and tells its log-probabilities."
    import torch

    from designloop.lm.protocol import chat_text
    text = f"{chat_text(prompt)[-8:]} gives {int(rng.integers(10**6))}"
    return Completion(text, len(text), len(chat_text(prompt)), torch.tensor([-0.01 * (ord(c) % 7 + 1) for c in text]), model="words")


def letters(prompt, continuation):
    "Log-probability of each letter, given the one before it."
    from designloop.lm.protocol import chat_text
    whole = chat_text(prompt) + continuation
    return [-0.1 * (1 + (ord(a) + ord(b)) % 5) for a, b in zip(whole[len(whole) - len(continuation) - 1:], continuation, strict=False)]


def fake() -> FunctionLM: return FunctionLM(words, "words", logprobs=letters)


@contextmanager
def serving(lm=None, key=None, **faults):
    "A server over an LM (default: the fake one) for the length of a block."
    with Server(lm or fake(), Faults(**faults), key=key) as server: yield server


@contextmanager
def saying(answer):
    "A server that answers with what `answer(path, body, headers)` returns: (status, text or object, headers). Gives (url, requests seen)."
    seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {k.lower(): v for k, v in self.headers.items()}
            seen.append((self.path, body, headers))
            status, said, more = answer(self.path, body, headers)
            data = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            for name, value in {"content-type": "application/json", "content-length": str(len(data)), **more}.items(): self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments): pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try: yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def chat_reply(text="ok", finish="stop", **more):
    "What a hosted model answers."
    return {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}, **more}


if __name__ == "__main__":
    server = Server(fake(), Faults(fail=float(sys.argv[2]) if len(sys.argv) > 2 else 0.0), port=int(sys.argv[1])).start()
    print(server.url, flush=True)
    threading.Event().wait()
