"""Serves a model over HTTP, as OpenAI's API has it: completions, infilling, chat, streams.

python -m tools.serve --model runs/quickstart
curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
  -d '{"model": "quickstart", "prompt": "민준은 ", "max_tokens": 32}'
"""

import argparse
import logging
import os
import signal
import socket
import sys
from pathlib import Path

from hcxjax.checkpoint import CheckpointError
from hcxjax.inference.engine import Engine
from hcxjax.text.templates import TEMPLATES
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.tracking import quiet_libraries
from tools import opening
from tools.opening import OpenModel

KEY = "HCXJAX_API_KEY"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    opening.add_model_arguments(arguments)
    arguments.add_argument("--name", help="of the model in requests (default: the folder's)")
    arguments.add_argument("--template", choices=tuple(TEMPLATES), help="form of a conversation (default: by model)")
    door = arguments.add_argument_group("who may ask")
    door.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    door.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    door.add_argument(
        "--api_key_file", metavar="FILE", help=f"holds the key (default: the environment's {KEY}, or none)"
    )
    limits = arguments.add_argument_group("limits")
    for name, default, meaning in (
        ("max_tokens", 1024, "tokens of one answer"),
        ("max_prompts", 16, "prompts of one completion"),
        ("max_samples", 8, "n of a request"),
        ("max_queue", 256, "requests that wait; more are told to come again"),
        ("max_body_bytes", 2**20, "of one request"),
        ("max_behind", 1024, "tokens that the reader of a stream may be behind before it loses its slot"),
        ("max_connections", 1024, "connections open at once"),
    ):
        limits.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (default: %(default)s)")
    limits.add_argument(
        "--grace", type=float, default=30.0, help="seconds to finish what is under way after SIGTERM (default: 30)"
    )
    return arguments


def api_key(file: str | None) -> str | None:
    """The key that requests must carry, from a file or the environment; None where there is none.

    Raises:
      ValueError: it is empty, or no printable ASCII, which a header could not carry.
    """
    key = os.environ.get(KEY) if file is None else Path(file).read_text(encoding="utf-8").strip()
    if key is None:
        return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"the API key in {file or KEY} must be printable ASCII without spaces, and not empty")
    return key


def engine_for(opened: OpenModel, options: argparse.Namespace) -> Engine:
    """The engine that the command line describes."""
    settings = opening.settings_of(options, opened, slots=options.slots, queue=options.max_queue)
    with opened.layout.active():
        return Engine(opened.model, opened.params, opened.vocabulary, settings)


def listening(host: str, port: int) -> socket.socket:
    """A socket at an address, not yet open: requests are refused, not left waiting, until the model is there.

    Raises:
      ValueError: the address is no address, or taken.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ValueError(f"cannot listen at {host} port {port} (--host, --port): {error}") from None
    return listener


def serve(opened: OpenModel, listener: socket.socket, options: argparse.Namespace) -> None:
    """Answers until SIGTERM or SIGINT."""
    from hcxjax.serving.app import Door, application
    from hcxjax.serving.bridge import Bridge
    from hcxjax.serving.calls import CallLimits
    from hcxjax.serving.http import LOOPBACK, is_loopback
    from hcxjax.serving.metrics import Metrics
    from hcxjax.serving.prompts import Served
    from hcxjax.serving.server import Server

    key, local = api_key(options.api_key_file), is_loopback(options.host)
    if key is None and not local:
        print(f"serve: warning: {options.host} is open to others without an API key; set {KEY}", file=sys.stderr)
    engine, metrics = engine_for(opened, options), Metrics()
    served = Served(
        options.name or opened.name,
        Vocabulary(opened.vocabulary.path),  # its own: the engine's thread uses the other
        opening.template_of(options, opened) if options.template else opened.template,
        engine.context,
        opened.model.vocab_size,
        CallLimits(options.max_tokens, options.max_prompts, options.max_samples),
        opened.begin,
        opened.ends,
    )
    bridge = Bridge(engine, options.max_queue + options.slots, opened.layout.active, metrics.observe)
    hosts = (*LOOPBACK, options.host) if local and key is None else None
    door = Door(key, hosts, options.max_body_bytes, behind=options.max_behind)
    server = Server(
        application(served, bridge, metrics, door), bridge, grace=options.grace, connections=options.max_connections
    )
    bridge.start()
    # uvicorn raises the signal that ended it once more when it is done; there is nothing left to end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    host, port = listener.getsockname()[:2]
    print(f"serve: {served.name} at http://{f'[{host}]' if ':' in host else host}:{port}/v1", flush=True)
    try:
        server.run([listener])
    finally:
        bridge.close(seconds=5.0)


def main(argv: list[str] | None = None) -> int:
    """Serves; 1 where something is wrong from the start."""
    options = parser().parse_args(argv)
    quiet_libraries()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        with listening(options.host, options.port) as listener:
            serve(opening.open_named(options), listener, options)
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "prometheus_client"):
            raise
        print(f"serve: {error.name} is missing: pip install -e '.[serve]'", file=sys.stderr)
        return 1
    except (ValueError, CheckpointError, OSError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
