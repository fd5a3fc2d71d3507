"""The one door to Globus Compute: registers the function, runs it on an endpoint, turns its errors into sentences.

The function travels as its text, arguments and results as JSON: nothing is pickled, and the two sides may have
different versions of Python.
"""

from __future__ import annotations

import inspect
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any

from campaign import __version__
from campaign.config.yaml_lines import show
from campaign.errors import CampaignError, InputError
from campaign.remote.function import campaign_remote
from campaign.remote.kept import keep_function, read_function
from campaign.remote.protocol import PROTOCOL, other_version
from campaign.report.live import printable

#: Seconds to wait for an endpoint's answer: a worker may have to be started first.
PATIENCE = 600.0

#: How often a request is made whose worker is lost on the way.
TRIES = 3

_ERROR = re.compile(r"[\w.]*(Error|Exception|Lost|Exceeded)\b")

LOGIN = "python -c 'from globus_compute_sdk import Client; Client()'"


class Service:
    """Globus Compute, and one endpoint of it.

    Parameters
    ----------
    endpoint
        The endpoint's id.
    patience
        Seconds to wait for an answer.

    Raises
    ------
    InputError
        The id is none, the endpoint is not known or not running, or this computer is not logged in.
    """

    def __init__(self, endpoint: str, patience: float = PATIENCE) -> None:
        self._endpoint = endpoint_id(endpoint)
        self._patience = patience
        self._client = _client()
        self._text = inspect.getsource(campaign_remote)
        with _told(self._endpoint):
            state = self._client.get_endpoint_status(self._endpoint).get("status")
        if state not in ("online", None):
            raise InputError(
                f"--endpoint: endpoint {self._endpoint} is {state}; start it on its machine: "
                "globus-compute-endpoint start NAME."
            )

    @property
    def function(self) -> str:
        """The id of the registered function; it is registered once, and again where Globus has lost it."""
        known = read_function(self._text)
        return known if known is not None else self._register()

    def _register(self) -> str:
        with _told(self._endpoint):
            function = str(self._client.register_function(campaign_remote))
        keep_function(self._text, function)
        return function

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the function on the endpoint and return its answer.

        Raises
        ------
        InputError
            The endpoint's side refuses the request.
        CampaignError
            It could not be asked, or could not do it.
        """
        whole = {"protocol": PROTOCOL, "version": __version__, **request}
        try:
            try:
                return self._try(self.function, whole)
            except _FunctionLost:
                return self._try(self._register(), whole)
        except _FunctionRefused as error:  # the id that is known stays: it is the one that an owner may allow
            raise InputError(f"{error} Its id is {self.function}.") from error

    def _try(self, function: str, request: dict[str, Any]) -> dict[str, Any]:
        for _ in range(TRIES - 1):
            with suppress(_WorkerLost):  # a request may be made twice: a run at work is not started again
                return self._read(self._ask(function, request))
        return self._read(self._ask(function, request))

    def _ask(self, function: str, request: dict[str, Any]) -> Any:
        from globus_compute_sdk import Executor
        from globus_compute_sdk.serialize import JSONData

        with _told(self._endpoint):
            executor = Executor(self._endpoint, client=self._client, result_serializers=[JSONData()])
            try:
                future = executor.submit_to_registered_function(function, kwargs={"request": request})
                return future.result(self._patience)
            except TimeoutError:
                raise CampaignError(
                    f"Endpoint {self._endpoint} has not answered in {self._patience:g} s; its workers may still wait "
                    "in a queue. Type the same command again later: nothing is done twice."
                ) from None
            finally:
                executor.shutdown(wait=False, cancel_futures=True)

    def _read(self, answer: Any) -> dict[str, Any]:
        if not isinstance(answer, dict):
            raise CampaignError(f"Endpoint {self._endpoint} answered {show(answer)}, which is nothing campaign says.")
        where = f"endpoint {self._endpoint}"
        if answer.get("problems"):
            problems = [f"{where}: {printable(problem)}" for problem in answer["problems"]]
            raise InputError(*problems) if answer.get("kind") == "input" else CampaignError("\n".join(problems))
        if answer.get("protocol") != PROTOCOL:
            raise InputError(other_version(answer.get("version"), where))
        return answer


class _WorkerLost(CampaignError):
    """The worker that had the request was lost; another may do it."""


class _FunctionLost(InputError):
    """Globus does not know the function any more."""


class _FunctionRefused(InputError):
    """The function may not run on this endpoint."""


def endpoint_id(endpoint: str) -> str:
    """Return an endpoint's id as Globus writes it.

    Raises
    ------
    InputError
        It is none.
    """
    try:
        return str(uuid.UUID(endpoint))
    except (ValueError, AttributeError):
        raise InputError(
            f"--endpoint: an endpoint's id is needed, got {show(endpoint)}; write it as 'globus-compute-endpoint list' "
            "shows it on its machine, such as 4b116d3c-1703-4f8f-9f6f-39921e5864df."
        ) from None


def _client() -> Any:
    """Return Globus Compute's client, which must be logged in: nobody may be there to answer its questions."""
    from globus_compute_sdk import Client
    from globus_compute_sdk.serialize import JSONData, PureSourceTextInspect

    try:
        client = Client(
            do_version_check=False,
            code_serialization_strategy=PureSourceTextInspect(),
            data_serialization_strategy=JSONData(),
        )
    except ValueError as error:  # one of its two variables is set without the other
        raise InputError(f"Globus Compute cannot be used: {' '.join(str(error).split())}") from error
    user = client.app is not None and type(client.app).__name__ == "UserApp"  # an application's own id needs no login
    if user and client.app.login_required():
        raise InputError(
            f"This computer is not logged in to Globus Compute. Log in once, in a terminal: {LOGIN} (or set "
            "GLOBUS_COMPUTE_CLIENT_ID and GLOBUS_COMPUTE_CLIENT_SECRET)."
        )
    return client


@contextmanager
def _told(endpoint: str) -> Iterator[None]:
    """Turn what Globus raises into a sentence with its remedy."""
    try:
        yield
    except Exception as error:
        sentence = _sentence(error, endpoint)
        if sentence is None:
            raise
        raise sentence from error


def _sentence(error: Exception, endpoint: str) -> CampaignError | None:
    from globus_compute_sdk.errors import ComputeError, MaxResultSizeExceeded, TaskExecutionFailed
    from globus_sdk import GlobusAPIError, GlobusError, NetworkError

    if isinstance(error, GlobusAPIError):
        said = error.message or (error.raw_json or {}).get("reason") or error.text or error.code or ""
        return _refused(error.http_status, str(said)[:300], endpoint)
    if isinstance(error, NetworkError):
        return CampaignError(
            f"Globus cannot be reached ({error}); look at the network and type the same command again: nothing is done "
            "twice."
        )
    if isinstance(error, TaskExecutionFailed):
        lines = [line.strip(" -+") for line in str(error.remote_data).splitlines()]
        said = [line for line in lines if _ERROR.match(line)] or [line for line in lines if line] or ["no reason given"]
        what = f"Endpoint {endpoint} could not run the request ({said[-1][:300]})"
        if "Lost" in said[-1]:
            return _WorkerLost(f"{what}; type the same command again: nothing is done twice.")
        return CampaignError(f"{what}; look at the logs of its workers, and that campaign is installed there.")
    if isinstance(error, GlobusError | ComputeError | MaxResultSizeExceeded | CancelledError):
        return CampaignError(
            f"Globus Compute failed ({type(error).__name__}: {error}); type the same command again, or log in anew: "
            f"{LOGIN}."
        )
    return None


def _refused(status: int, message: str, endpoint: str) -> CampaignError:
    """Return the sentence for an answer of the web service that is not what was asked for."""
    message = " ".join(message.split()).rstrip(".")
    if "function" in message.lower():
        remedy = "where the endpoint's owner has a list of allowed_functions, ask for it to be added"
        kind = _FunctionLost if status == 404 else _FunctionRefused
        return kind(f"Globus Compute refuses campaign's function ({message}); {remedy}.")
    if status == 404:
        return InputError(
            f"--endpoint: Globus Compute knows no endpoint {endpoint} ({message}); compare it with "
            "'globus-compute-endpoint list' on its machine."
        )
    if status in (401, 403):
        return InputError(
            f"Globus Compute does not let you use endpoint {endpoint} ({message}); log in as the one it is for "
            f"({LOGIN}), or ask its owner."
        )
    return CampaignError(f"Globus Compute answered {status} ({message}); type the same command again in a while.")
