"""The hub's cache and the network, with a hub of our own on this machine."""

import contextlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dlprobe.backbones.weights.hub import fetch_weights
from dlprobe.errors import BackboneError

CONTENT = b"weights" * 100
COMMIT = "a" * 40


def point_to(monkeypatch, tmp_path, address):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextlib.contextmanager
def hub(files):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, *, body):
            asked.append((self.command, self.path))
            found = self.path.rpartition("/")[2] in files
            self.send_response(200 if found else 404)
            self.send_header("X-Repo-Commit", COMMIT)
            if found:
                self.send_header("ETag", '"0123456789"')
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(CONTENT) if found else 0))
            self.end_headers()
            if body and found:
                self.wfile.write(CONTENT)

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_weights_are_fetched_once_and_then_found_without_network(monkeypatch, tmp_path):
    with hub({"model.safetensors"}) as (address, asked):
        point_to(monkeypatch, tmp_path, address)
        path = fetch_weights("timm/nano", "timm:nano")
        assert path.read_bytes() == CONTENT
        assert asked
        asked.clear()
        assert fetch_weights("timm/nano", "timm:nano") == path
        assert asked == []


def test_the_second_name_of_the_file_is_tried(monkeypatch, tmp_path):
    with hub({"pytorch_model.bin"}) as (address, _):
        point_to(monkeypatch, tmp_path, address)
        assert fetch_weights("timm/nano", "timm:nano").name == "pytorch_model.bin"


def test_a_repository_without_weights_is_told(monkeypatch, tmp_path):
    with hub(set()) as (address, _):
        point_to(monkeypatch, tmp_path, address)
        with pytest.raises(BackboneError, match="no weight file of a known name"):
            fetch_weights("timm/nano", "timm:nano")


def test_a_hub_that_refuses_is_told_at_once(monkeypatch, tmp_path):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, but nobody listens
        point_to(monkeypatch, tmp_path, f"http://127.0.0.1:{reserved.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(BackboneError, match="the hub cannot be reached") as caught:
            fetch_weights("timm/nano", "timm:nano")
        assert time.perf_counter() - start < 4
    assert "\n" not in str(caught.value)


def test_a_hub_that_never_answers_costs_a_few_seconds(monkeypatch, tmp_path):
    monkeypatch.setattr("dlprobe.backbones.weights.hub.ANSWER_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_to(monkeypatch, tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(BackboneError, match=r"cannot be fetched \(the hub (cannot be reached|did not answer)"):
            fetch_weights("timm/nano", "timm:nano")
        assert time.perf_counter() - start < 3


def test_offline_mode_asks_nobody(monkeypatch, tmp_path):
    with hub({"model.safetensors"}) as (address, asked):
        point_to(monkeypatch, tmp_path, address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(BackboneError, match="HF_HUB_OFFLINE is set"):
            fetch_weights("timm/nano", "timm:nano")
        assert asked == []
