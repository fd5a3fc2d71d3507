"""An endpoint without the cloud: Globus Compute's real engine, workers and serializer; the web service is a stand-in.

``WebService`` does what the service does with a task: it joins the registered function's text and the packed arguments,
refuses what is over 10 MB, and hands it to the endpoint; the result comes back as packed by the worker.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import requests
from globus_compute_common import messagepack
from globus_compute_common.messagepack.message_types import Task
from globus_compute_sdk.errors import TaskExecutionFailed
from globus_compute_sdk.sdk.batch import Batch
from globus_compute_sdk.sdk.client import FunctionRegistrationData
from globus_compute_sdk.serialize import ComputeSerializer
from globus_sdk import ComputeAPIError, GlobusAPIError

LIMIT = 10 * 1024 * 1024

TOY = """
campaign: toy
seed: 4
system:
  structure: {prototype: fcc, elements: [Ar], a: 5.3, supercell: [2, 2, 2]}
sample: [{method: fake, walkers: 2, frames: 20, segment: 10}]
select: {method: random, size: 4}
label: {engine: fake}
train: {model: fake}
validate: [{method: errors, held_out: 5}]
"""

SITE = """
site: tiny
executors: {cpu: {provider: local, workers: 1}}
stages: {default: cpu}
"""


def refusal(status: int, message: str) -> GlobusAPIError:
    """Return the SDK's own error for an answer of the web service."""
    response = requests.Response()
    response.status_code = status
    response._content = json.dumps({"status": "Failed", "code": status, "reason": message}).encode()
    response.headers["Content-Type"] = "application/json"
    response.request = requests.Request("POST", "https://compute.api.globus.org/v3").prepare()
    return ComputeAPIError(response)


class WebService:
    """The stand-in for Globus's web service: the functions that were registered, and one endpoint."""

    def __init__(self, engine: Any, endpoint: uuid.UUID) -> None:
        self.engine = engine
        self.endpoint = str(endpoint)
        self.functions: dict[str, str] = {}
        self.state = "online"
        self.allowed: set[str] | None = None
        self.sent: list[int] = []

    def run(self, function: str, payload: str, results: list[str]) -> Future[bytes]:
        from globus_compute_endpoint.engines.base import GCFuture

        if function not in self.functions:
            raise refusal(404, f"Function {function} could not be resolved")
        if self.allowed is not None and function not in self.allowed:
            raise refusal(403, f"Function {function} not permitted on endpoint {self.endpoint}")
        if len(payload) > LIMIT:
            raise refusal(413, "Task payload is over the limit")
        self.sent.append(len(payload))
        task = Task(task_id=uuid.uuid4(), task_buffer=self.functions[function] + payload)
        future = GCFuture(gc_task_id=task.task_id)
        self.engine.submit(future, messagepack.pack(task), {}, results)
        return future


class Client:
    """What of ``globus_compute_sdk.Client`` is used."""

    service: WebService
    app = None

    def __init__(self, *, do_version_check: bool, code_serialization_strategy: Any, data_serialization_strategy: Any):
        self.fx_serializer = ComputeSerializer(code_serialization_strategy, data_serialization_strategy)

    def get_endpoint_status(self, endpoint: str) -> dict[str, Any]:
        if endpoint != self.service.endpoint:
            raise refusal(404, f"Endpoint {endpoint} could not be resolved")
        return {"status": self.service.state, "details": {}}

    def register_function(self, function: Callable[..., Any]) -> str:
        data = FunctionRegistrationData(function=function, serializer=self.fx_serializer).to_dict()
        identifier = str(uuid.uuid4())
        self.service.functions[identifier] = data["function_code"]
        return identifier


class Executor:
    """What of ``globus_compute_sdk.Executor`` is used."""

    def __init__(self, endpoint_id: str, client: Client, result_serializers: list[Any]) -> None:
        self.client = client
        self.results = [f"{type(s).__module__}.{type(s).__name__}" for s in result_serializers]

    def submit_to_registered_function(self, function_id: str, kwargs: dict[str, Any]) -> Future[Any]:
        batch = Batch(None, serializer=self.client.fx_serializer, result_serializers=self.results)
        batch.add(function_id, (), kwargs)
        payload = batch.prepare()["tasks"][function_id][0]
        outer: Future[Any] = Future()
        try:
            inner = self.client.service.run(function_id, payload, self.results)
        except (GlobusAPIError, TaskExecutionFailed) as error:
            outer.set_exception(error)
            return outer
        inner.add_done_callback(lambda done: self._unpack(done.result(), outer))
        return outer

    def _unpack(self, packed: bytes, future: Future[Any]) -> None:
        result = messagepack.unpack(packed)
        if result.is_error:
            future.set_exception(TaskExecutionFailed(result.data))
        else:
            future.set_result(self.client.fx_serializer.deserialize(result.data))

    def shutdown(self, wait: bool, cancel_futures: bool) -> None:
        assert not wait


class Endpoint:
    """A running endpoint, and what its owner wrote.

    Attributes
    ----------
    home
        The folder of all that is the owner's: ``remote.yaml``, ``tiny.yaml`` and ``root``.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "root"
        self.file = home / "remote.yaml"
        self.id = uuid.uuid4()
        self.root.mkdir()
        (home / "tiny.yaml").write_text(SITE)
        self.allow()

    def allow(self, **more: str) -> None:
        """Write what is allowed."""
        lines = [f"root: {self.root}", f"sites: [{self.home / 'tiny.yaml'}]", *(f"{k}: {v}" for k, v in more.items())]
        self.file.write_text("\n".join(lines))

    def start(self) -> Any:
        """Start the endpoint's engine and return it."""
        from globus_compute_endpoint.engines import GlobusComputeEngine
        from parsl.providers import LocalProvider

        strategies = "globus_compute_sdk.serialize.concretes"
        self.engine = GlobusComputeEngine(
            address="127.0.0.1",
            provider=LocalProvider(init_blocks=1, min_blocks=0, max_blocks=1),
            encrypted=False,
            max_workers_per_node=1,
            heartbeat_period=1,
            heartbeat_threshold=4,
            block_error_handler=False,  # a block that is lost is replaced, also where it was the only one
            job_status_kwargs={"strategy_period": 0.5, "max_idletime": 600.0},
            allowed_serializers=[f"{strategies}.PureSourceTextInspect", f"{strategies}.JSONData"],
        )
        self.engine.start(endpoint_id=self.id, run_dir=str(self.home / "endpoint"))
        return self.engine

    def kill_workers(self) -> None:
        """Kill the endpoint's workers and their pool: what is left is what has a session of its own."""
        job = next(reversed(self.engine.executor.blocks_to_job_id.values()))
        script = psutil.Process(int(job))
        session = os.getsid(script.pid)
        found = [p for p in script.children(recursive=True) if os.getsid(p.pid) == session]
        assert len(found) >= 2
        for process in [script, *found]:
            process.kill()
        psutil.wait_procs(found, timeout=10)

    def drivers(self) -> list[psutil.Process]:
        """The campaigns' drivers, and all that they started."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.root) in " ".join(process.cmdline()):
                    found += [process, *process.children(recursive=True)]
            except psutil.Error:
                continue
        return found

    def stop(self) -> None:
        self.engine.shutdown()
        for process in self.drivers():
            process.kill()


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for a condition and return what it gave."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come about")
