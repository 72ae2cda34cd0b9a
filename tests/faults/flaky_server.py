"""A real MLflow server that answers 500 while a file is there, and loses a share of its answers.

    python flaky_server.py STORE_URI ARTIFACTS OUTAGE_FILE SHARE

Prints its port once it listens on this machine.
"""

import os
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

store, artifacts, outage, share = sys.argv[1:]
os.environ["_MLFLOW_SERVER_FILE_STORE"] = store
os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"] = artifacts
os.environ["MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE"] = "true"  # it serves this test alone

from mlflow.server import app  # noqa: E402  it reads the environment
from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: E402

chance = random.Random(0)


class Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


def flaky(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    if Path(outage).exists():
        start("500 Internal Server Error", [("Content-Type", "text/plain")])
        return [b"out of order"]
    if chance.random() < float(share):
        b"".join(app(environment, lambda *_: lambda _: None))  # done, and nobody will know
        start("500 Internal Server Error", [("Content-Type", "text/plain")])
        return [b"lost"]
    return app(environment, start)


server = make_server("127.0.0.1", 0, flaky, threaded=True, request_handler=Quiet)
print(server.port, flush=True)
server.serve_forever()
