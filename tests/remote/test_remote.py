"""The whole way from a laptop to a campaign and back, through Globus Compute's real engine and workers."""

from __future__ import annotations

import json
import os
import stat
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from globus_compute_sdk.errors import TaskExecutionFailed

from campaign import cli
from campaign.errors import CampaignError, InputError
from campaign.remote import client, protocol
from campaign.remote.client import Options, Remote, fetch, status, submit, wait
from campaign.remote.kept import Kept
from campaign.remote.service import Service
from tests.remote.stand_in import TOY, Endpoint, WebService, until

pytestmark = pytest.mark.requires("globus_compute_endpoint")

SLOW = TOY.replace("segment: 10", "segment: 2, delay: 0.5").partition("train:")[0]


def ledger(endpoint: Endpoint, run: str) -> list[dict[str, Any]]:
    path = endpoint.root / run / "toy/ledger.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def done(endpoint: Endpoint, run: str) -> list[str]:
    return [r["task"] for r in ledger(endpoint, run) if r["state"] == "done"]


def ask(service: WebService, **request: Any) -> dict[str, Any]:
    """Send a request that ``campaign remote`` itself would not send."""
    return Service(service.endpoint).call(request)


def refused(service: WebService, **request: Any) -> str:
    with pytest.raises(InputError) as found:
        ask(service, **request)
    assert str(found.value).startswith(f"endpoint {service.endpoint}: ")
    return str(found.value)


def test_submit_status_wait_fetch(laptop: Path, endpoint: Endpoint, service: WebService, finished: str) -> None:
    assert finished.startswith("toy-")
    run, told = finished, []
    found = wait(run, service.endpoint, every=0.5, timeout=120, tell=told.append)
    assert (found["state"], found["frames"], found["selected"], found["labelled"]) == ("done", 40, 4, 9)
    assert found["host"] == os.uname().nodename
    assert found["folder"] == str(endpoint.root / run)
    assert told == [found]
    report = fetch(run, "report", endpoint=service.endpoint).paths
    assert report == [Path(run) / "report.html"]
    assert "</html>" in report[0].read_text()
    assert report[0].read_bytes() == (endpoint.root / run / "toy/report.html").read_bytes()
    from ase.io import read

    assert len(read(fetch(run, "selected", "set", service.endpoint).paths[0], index=":")) == 4
    labelled = read(fetch(run, "labelled", "set", service.endpoint).paths[0], index=":")
    assert len(labelled) == 4
    assert labelled[0].get_forces().shape == (32, 3)
    models = fetch(run, "model", "set", service.endpoint).paths
    written = sorted((endpoint.root / run / "toy/models").glob("*.pt"))
    assert models
    assert [m.read_bytes() for m in models] == [p.read_bytes() for p in written]
    assert status(run, service.endpoint)["state"] == "done"


def test_the_commands(
    laptop: Path,
    endpoint: Endpoint,
    service: WebService,
    finished: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def typed(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["campaign", "remote", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        return int(end.value.code or 0), shown.out, shown.err

    Kept(finished, service.endpoint, "tiny", file="toy.yaml").write()
    code, out, _ = typed("status", finished, "--json")
    found = json.loads(out)
    assert (code, found["state"], found["run"], found["endpoint"]) == (0, "done", finished, service.endpoint)
    assert set(found) >= {"campaign", "stages", "frames", "selected", "labelled", "failures", "function"}
    assert found["function"] in service.functions
    code, out, err = typed("status", finished)
    assert (code, "validate" in out) == (0, True)
    assert str(endpoint.root / finished) in err
    code, out, _ = typed("status")
    assert (code, out.split()[0], out.split()[-1]) == (0, finished, "tiny")
    code, out, err = typed("wait", finished, "--every", "0.1")
    assert code == 0
    assert f"{finished}: done, 40 frames" in err
    assert typed("fetch", finished, "report", "-o", "here") == (0, "here/report.html\n", "")
    model = endpoint.root / finished / "toy/models/large.pt"
    model.write_bytes(b"x" * protocol.LARGEST)
    try:
        code, out, err = typed("fetch", finished, "model")
    finally:
        model.unlink()
    assert (code, out.splitlines()[0]) == (1, f"mkdir -p {finished}")
    assert "and Globus Compute carries 6.3 MB; bring it with:" in err


@pytest.mark.slow
def test_the_same_command_again_is_the_same_run(
    laptop: Path, endpoint: Endpoint, service: WebService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is kept of it here names no secret, and is for the user alone."""
    options = Options(until="sample", root="a/b")
    run = submit("toy.yaml", service.endpoint, "tiny", options=options)
    folder = laptop / "state/campaign/remote"
    kept = json.loads((folder / f"{run}.json").read_text())
    assert kept.pop("submitted") > 0
    where = {"endpoint": service.endpoint, "site": "tiny", "root": "a/b"}
    assert kept == {"run": run, **where, "file": str(laptop / "toy.yaml")}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert wait(run, every=0.5, timeout=120)["state"] == "stopped"
    assert (endpoint.root / "a/b" / run / "toy/run.zarr").is_dir()
    monkeypatch.setenv("XDG_STATE_HOME", str(laptop / "another computer"))
    assert status(f"a/b/{run}", service.endpoint.upper())["frames"] == 40
    monkeypatch.setenv("XDG_STATE_HOME", str(laptop / "state"))
    with pytest.raises(InputError, match=r"--root: run toy-.* lies in a/b, got 'c'"):
        submit(run=run, options=Options(root="c"))
    assert submit("toy.yaml", service.endpoint, "tiny", options=options) == run
    assert submit("toy.yaml", service.endpoint, "tiny", options=Options(until="sample", new=True)) != run
    assert wait(run, every=0.5, timeout=120)["state"] == "stopped"
    assert (endpoint.root / "a/b" / run / "driver.log").read_text().count("=== ") == 2
    assert len(done(endpoint, f"a/b/{run}")) == 4  # not one of the four segments was run again


@pytest.mark.slow
def test_the_campaign_outlives_its_endpoints_worker(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    (laptop / "toy.yaml").write_text(SLOW)
    run = submit("toy.yaml", service.endpoint, "tiny", options=Options(until="sample"))
    assert submit("toy.yaml", service.endpoint, "tiny", options=Options(until="sample")) == run
    assert submit(run=run) == run
    (laptop / "toy.yaml").write_text(SLOW.replace("seed: 4", "seed: 5"))
    with pytest.raises(InputError, match=r"toy.yaml: this file has changed since .* wait for it to end"):
        submit("toy.yaml", service.endpoint, "tiny")
    until(lambda: done(endpoint, run))
    endpoint.kill_workers()
    assert status(run)["state"] in ("running", "stopped")  # another worker answers
    endpoint.engine.shutdown()
    service.engine = endpoint.start()  # the endpoint was restarted
    assert wait(run, every=0.5, timeout=120)["state"] == "stopped"
    log = (endpoint.root / run / "driver.log").read_text()
    assert log.count("=== ") == 1  # one driver did it all, however often it was submitted
    assert "report:" in log


def test_resume_when_the_node_is_lost(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    """The endpoint's workers, the driver and its workers are killed; submitting the run again loses nothing."""
    (laptop / "toy.yaml").write_text(SLOW)
    run = submit("toy.yaml", service.endpoint, "tiny")
    before = until(lambda: len(d := done(endpoint, run)) >= 3 and d)
    endpoint.kill_workers()
    for process in endpoint.drivers():
        process.kill()
    found = status(run)
    assert found["state"] == "interrupted"
    assert found["driver"] is None
    assert submit(run=run) == run
    found = wait(run, every=0.5, timeout=240)
    assert (found["state"], found["frames"]) == ("done", 40)
    after = done(endpoint, run)
    assert len(after) == len(set(after))
    assert set(before) <= set(after)


def test_a_site_outside_the_list_is_refused(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    for site in ("local", "../tiny", str(endpoint.home / "tiny.yaml"), "tiny.yaml"):
        with pytest.raises(InputError) as found:
            submit("toy.yaml", service.endpoint, site)
        assert "campaigns sent to this endpoint may not use this site" in str(found.value)
        assert f"add it to 'sites' in {endpoint.file}" in str(found.value)
    assert list((laptop / "state/campaign/remote").glob("*.json")) == []  # nothing was started, nothing is kept


@pytest.mark.parametrize(
    ("root", "said"), [("/tmp", "absolute path"), ("../x", "'..' could leave"), ("a/../../x", "'..' could leave")]
)
def test_a_root_outside_the_endpoints_own_is_refused(
    laptop: Path, endpoint: Endpoint, service: WebService, root: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        submit("toy.yaml", service.endpoint, "tiny", options=Options(root=root))
    files = protocol.pack_files({"toy.yaml": TOY.encode()})
    request = {"action": "submit", "run": "toy-1", "site": "tiny", "file": "toy.yaml", "files": files, "root": root}
    assert said in refused(service, **request)
    assert said in refused(service, action="fetch", run="toy-1", root=root, what="report")


def test_links_are_refused(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    outside = endpoint.home / "outside"
    outside.mkdir()
    (endpoint.root / "link").symlink_to(outside)
    with pytest.raises(InputError, match=r"link is a symbolic link, which could leave"):
        submit("toy.yaml", service.endpoint, "tiny", options=Options(root="link"))
    (endpoint.root / "toy-2/_inputs").mkdir(parents=True)
    (endpoint.root / "toy-2/_inputs/toy.yaml").symlink_to(outside / "toy.yaml")
    files = protocol.pack_files({"toy.yaml": TOY.encode()})
    request = {"action": "submit", "run": "toy-2", "site": "tiny", "file": "toy.yaml", "files": files}
    assert "symbolic link" in refused(service, **request)
    assert list(outside.iterdir()) == []


def test_a_run_inside_another_is_refused(laptop: Path, service: WebService, finished: str) -> None:
    with pytest.raises(InputError, match=r"--root: .* is the folder of another run, got 'toy-.*/toy'"):
        submit("toy.yaml", service.endpoint, "tiny", options=Options(root=f"{finished}/toy"))


def test_files_that_leave_their_folder_are_refused(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    for name in ("../../evil", "/tmp/evil", ".ssh/authorized_keys", "a/../../evil"):
        files = protocol.pack_files({"toy.yaml": TOY.encode(), name: b"x"})
        request = {"action": "submit", "run": "toy-3", "site": "tiny", "file": "toy.yaml", "files": files}
        assert "files: " in refused(service, **request)
    files = protocol.pack_files({"toy.yaml": TOY.encode(), "sitecustomize.py": b"x"})
    request = {"action": "submit", "run": "toy-3", "site": "tiny", "file": "toy.yaml", "files": files}
    assert "sitecustomize.py: this file was sent and the campaign does not name it" in refused(service, **request)
    for run in ("../toy", "/tmp", "a/b", ""):
        assert "run: a run id has" in refused(service, action="status", run=run)
    assert not (endpoint.root / "toy-3").exists()  # nothing is left of what was refused


def test_too_much_is_refused_on_both_sides(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    sent = len(service.sent)
    (laptop / "big.extxyz").write_bytes(b"x" * (protocol.LARGEST + 1))
    text = TOY.replace("sample: [", "sample: [{method: file, file: big.extxyz}, ")
    (laptop / "toy.yaml").write_text(text)
    with pytest.raises(InputError, match=r"big.extxyz: the campaign's files have 6.3 MB .* carries 6.3 MB"):
        submit("toy.yaml", service.endpoint, "tiny")
    assert len(service.sent) == sent
    files = {"toy.yaml": text.encode(), "big.extxyz": b"x" * (protocol.LARGEST + 1)}
    request = {"action": "submit", "run": "toy-4", "site": "tiny", "file": "toy.yaml"}
    assert "the campaign's files have 6.3 MB" in refused(service, files=protocol.pack_files(files), **request)
    # what is just allowed is under the service's limit, on the way there and back
    files["big.extxyz"] = b"x" * (protocol.LARGEST - len(text.encode()))
    assert "toy.yaml:6: sample[0].file: frame 0" in refused(service, files=protocol.pack_files(files), **request)
    assert service.sent[-1] < 10_000_000


def test_results_that_are_too_large_come_with_the_command(
    laptop: Path, endpoint: Endpoint, service: WebService, finished: str
) -> None:
    model = endpoint.root / finished / "toy/models/a.pt"
    model.write_bytes(b"x" * protocol.LARGEST)
    try:
        endpoint.allow(host="hpc.example.org")
        found = fetch(finished, "model", endpoint=service.endpoint)
        assert found.paths == []
        assert found.size > protocol.LARGEST
        assert found.commands[0] == f"mkdir -p {finished}"
        assert found.commands[1].startswith(f"scp hpc.example.org:{model} ")
        endpoint.allow(collection="6c54cade-bde5-45c1-bdea-f4bd71dba2cc")
        first = fetch(finished, "model", endpoint=service.endpoint).commands[0]
        assert first.startswith(f"globus transfer 6c54cade-bde5-45c1-bdea-f4bd71dba2cc:{model} ")
        model.write_bytes(b"x" * (protocol.LARGEST - 100_000))  # just allowed: it comes through Globus Compute
        assert fetch(finished, "model", endpoint=service.endpoint).paths[0].name == "a.pt"
    finally:
        endpoint.allow()
        model.unlink()


def test_what_is_wrong_with_a_file_is_said_with_its_line(laptop: Path, service: WebService) -> None:
    sent = len(service.sent)
    (laptop / "toy.yaml").write_text(TOY.replace("size: 4", "size: 0"))
    with pytest.raises(InputError, match=r"toy.yaml:7: select.size"):
        submit("toy.yaml", service.endpoint, "tiny")
    assert len(service.sent) == sent
    wrong = TOY.replace("engine: fake", "engine: shell").encode()
    files = protocol.pack_files({"toy.yaml": wrong})
    said = refused(service, action="submit", run="toy-5", site="tiny", file="toy.yaml", files=files)
    assert ": toy.yaml:8: label.engine: there is no such engine, got 'shell'" in said
    lines = "# elements: Ar\nshell touch /tmp/evil\npair_style lj/cut 8\n"
    text = TOY.replace("  structure", "  potential: {lammps: ar.lmp}\n  structure")
    files = protocol.pack_files({"toy.yaml": text.encode(), "ar.lmp": lines.encode()})
    said = refused(service, action="submit", run="toy-5", site="tiny", file="toy.yaml", files=files)
    assert "'shell" in said
    files = protocol.pack_files({"toy.yaml": TOY.encode()})
    request = {"run": "toy-5", "site": "tiny", "file": "toy.yaml", "files": files, "until": "distill"}
    said = refused(service, action="submit", **request)
    assert "--until: this campaign has no stage distill; write one of sample, select, label, train, validate" in said


def test_labels_are_kept_below_the_endpoints_folder(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    text = TOY.replace("engine: fake}", "engine: ase, calculator: lj, cache: /tmp/labels}", 1)
    files = protocol.pack_files({"toy.yaml": text.encode()})
    said = refused(service, action="submit", run="toy-6", site="tiny", file="toy.yaml", files=files)
    assert "toy.yaml:8: label.cache: campaigns that were sent share labels in one folder of the endpoint" in said
    assert f"write {endpoint.root}/_labels" in said


def test_a_machine_that_allows_nothing(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    text = endpoint.file.read_text()
    try:
        endpoint.file.unlink()
        with pytest.raises(InputError, match=r"takes no campaigns from elsewhere: it has no .*remote.yaml"):
            submit("toy.yaml", service.endpoint, "tiny")
        endpoint.file.write_text("root: !!python/object/apply:os.getcwd []\nsites: [tiny]\n")
        with pytest.raises(InputError, match=r"remote.yaml:1: "):
            submit("toy.yaml", service.endpoint, "tiny")
        endpoint.file.write_text(text.replace("sites", "site"))
        with pytest.raises(InputError, match=r"remote.yaml:2: site: .* did you mean 'sites'"):
            submit("toy.yaml", service.endpoint, "tiny")
        endpoint.file.write_text(text.replace(str(endpoint.root), "runs"))
        with pytest.raises(InputError, match=r"remote.yaml:1: root: .* absolute path"):
            submit("toy.yaml", service.endpoint, "tiny")
    finally:
        endpoint.file.write_text(text)


def test_a_driver_that_ends_at_once_says_why(laptop: Path, endpoint: Endpoint, service: WebService) -> None:
    """The endpoint's checks passed, but the driver could not begin: its log comes with the status."""
    run = f"toy-{uuid.uuid4().hex[:8]}"
    (endpoint.root / run).mkdir()
    (endpoint.root / run / "toy").write_text("in the way")
    submit("toy.yaml", service.endpoint, "tiny", run=run)
    found = wait(run, every=0.5, timeout=120)
    assert found["state"] == "failed"
    assert any("toy" in line for line in found["log"])


def test_other_computers_and_other_versions(
    laptop: Path, endpoint: Endpoint, service: WebService, finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"run toy.*: no such run was submitted from this computer; .*--endpoint ID"):
        status(finished)
    with pytest.raises(InputError, match=r"run toy.*: no such run .* give FILE, --endpoint and --site with it"):
        submit(run=finished)
    with pytest.raises(InputError, match=rf"there is no such run in {endpoint.root} .*toy-"):
        status("toy-0", service.endpoint)
    monkeypatch.setattr("campaign.remote.service.PROTOCOL", 99)
    with pytest.raises(InputError, match="do not understand each other; install the same version"):
        status(finished, service.endpoint)


def test_wrong_endpoints(laptop: Path, service: WebService, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--endpoint: an endpoint's id is needed, got 'perlmutter'"):
        submit("toy.yaml", "perlmutter", "tiny")
    other = str(uuid.uuid4())
    with pytest.raises(InputError, match=f"--endpoint: Globus Compute knows no endpoint {other}"):
        submit("toy.yaml", other, "tiny")
    monkeypatch.setattr(service, "state", "offline")
    with pytest.raises(InputError, match=r"is offline; start it on its machine: globus-compute-endpoint start"):
        submit("toy.yaml", service.endpoint, "tiny")


def test_a_function_that_is_gone_and_an_answer_that_does_not_come(
    laptop: Path, service: WebService, finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote(finished, service.endpoint, patience=0.0)
    with pytest.raises(CampaignError, match=r"has not answered in 0 s; .* Type the same command again later"):
        remote.status()
    assert len(service.functions) >= 1
    service.functions.clear()
    assert status(finished, service.endpoint)["state"] == "done"  # it was registered once more
    assert len(service.functions) == 1
    fetch(finished, "report", endpoint=service.endpoint)
    assert len(service.functions) == 1  # and is used from then on
    monkeypatch.setattr(service, "allowed", set())
    with pytest.raises(
        InputError, match=r"refuses campaign's function \(Function .* not permitted .*allowed_functions"
    ):
        status(finished, service.endpoint)


def test_a_worker_that_is_lost_with_the_request(
    laptop: Path, service: WebService, finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = "parsl.executors.high_throughput.errors.ManagerLost: Task failure due to loss of manager 1 on host n1"
    failures = [lost, lost]
    whole = WebService.run

    def run(self: WebService, *words: Any) -> Any:
        if failures:
            raise TaskExecutionFailed(f"Traceback ...\n  File x\n{failures.pop()}\n-----")
        return whole(self, *words)

    monkeypatch.setattr(WebService, "run", run)
    assert status(finished, service.endpoint)["state"] == "done"
    failures = [lost] * 3
    with pytest.raises(CampaignError, match=r"could not run the request \(parsl.*n1\); type the same command again"):
        status(finished, service.endpoint)


def test_a_sleeping_network_does_not_end_a_wait(
    laptop: Path, service: WebService, finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = client.Service.call
    failures = iter(["Globus cannot be reached"] * 3)

    def call(self: Any, *words: Any) -> Any:
        for failure in failures:
            raise CampaignError(failure)
        return whole(self, *words)

    monkeypatch.setattr(client.Service, "call", call)
    told: list[Any] = []
    assert wait(finished, service.endpoint, every=0.01, tell=told.append)["state"] == "done"
    assert told[:3] == ["Globus cannot be reached"] * 3
    failures = iter(["gone"] * client.MOST_SILENT)
    with pytest.raises(CampaignError, match="gone"):
        wait(finished, service.endpoint, every=0.01)
