"""Real SuperLinks and SuperNodes on loopback: killed, brought back, lying, too few, without the right key."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr")

from hfp.federation.problem import load_problem
from hfp.federation.setup import set_up_own
from hfp.flower.keys import make_node_key
from hfp.flower.local import CONNECTION, LocalDeployment
from hfp.results.checkpoint import load_checkpoint

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.skipif(sys.platform == "win32", reason="processes are stopped by their groups"),
]

APP = Path(__file__).parents[2] / "support" / "flower_app"
EXAMPLE = Path(__file__).parents[3] / "examples" / "flower"
PATIENCE = 300.0


def until(holds, what, process=None):
    """Wait for something to come true; fail, not hang, where it doesn't."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}"
        assert process is None or process.poll() is None, f"the run ended before {what}"
        time.sleep(0.1)


def records(out):
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def statuses(record):
    return {client["client"]: client["status"] for client in record["clients"]}


class Stage:
    """A deployment of the test app, and what can be done to it."""

    def __init__(self, deployment, folder):
        self.deployment, self.folder, self.out = deployment, folder, folder / "out"

    def run(self, **settings):
        given = {"out": str(self.out), **settings}
        words = " ".join(f"{name.replace('_', '-')}={json.dumps(value)}" for name, value in given.items())
        return self.deployment.start_run(APP, [words])

    def start_node(self, client, clients=3):
        config = f"partition-id={client} num-partitions={clients}"
        return self.deployment.start_node(f"node-{client}", config)

    def log(self):
        return self.deployment.log("run").read_text()


@pytest.fixture
def stage(tmp_path):
    environment = {"HFP_TEST_FOLDER": str(tmp_path), "OMP_NUM_THREADS": "1", "TMPDIR": str(short_folder())}
    with LocalDeployment(tmp_path / "deployment", environment=environment) as deployment:
        deployment.start_link()
        yield Stage(deployment, tmp_path)


def short_folder():
    """Where workers put their sockets, whose paths must be short."""
    return Path("/tmp")


def test_a_run_outlives_killed_and_lying_nodes_and_its_superlink(stage):
    deployment, folder, out = stage.deployment, stage.folder, stage.out
    nodes = [stage.start_node(client) for client in range(3)]
    run = stage.run(rounds=100, round_timeout=40.0)
    until(lambda: len(records(out)) >= 1, "a first round", run)
    assert statuses(records(out)[0]) == {0: "in time", 1: "in time", 2: "in time"}

    (folder / "hold-1").touch()
    until((folder / "held-1").exists, "client 1 to be in the middle of a round", run)
    before = load_checkpoint(out)
    os.killpg(nodes[1].pid, signal.SIGKILL)
    nodes[1].wait()
    (folder / "hold-1").unlink()
    after = next_checkpoint(out, len(before.history), run)
    lost = {client.client: client.status == "in time" for client in after.history[-1].clients}
    assert lost == {0: True, 1: False, 2: True}
    assert_alone_held_stays(before, after)

    stage.start_node(1)
    back = len(records(out))
    until(lambda: any(statuses(r).get(1) == "in time" for r in records(out)[back:]), "client 1 to be used again", run)

    (folder / "garbage-2").touch()
    until(lambda: any(statuses(record).get(2) == "refused" for record in records(out)), "client 2 to be refused", run)
    (folder / "garbage-2").unlink()
    refused = next(record for record in records(out) if statuses(record).get(2) == "refused")
    assert next(one for one in refused["clients"] if one["client"] == 2)["problem"]
    assert all(tensor.isfinite().all() for tensor in load_checkpoint(out).run_state.state.weights.values())

    os.killpg(deployment.link.pid, signal.SIGKILL)
    deployment.link.wait()
    deployment.stop(run)
    done = len(load_checkpoint(out).history)
    deployment.start_link()
    again = stage.run(rounds=done + 2, resume=str(out), round_timeout=60.0)
    until(lambda: len(records(out)) == done + 2, "the resumed run to end")
    again.wait(PATIENCE)
    assert (out / "global.safetensors").exists()
    assert [record["round"] for record in records(out)] == list(range(1, done + 3))

    deployment.stop(deployment.nodes["node-0"])
    last = stage.run(rounds=done + 3, resume=str(out), quorum=3, wait=5.0)
    last.wait(PATIENCE)
    assert "of the 3 nodes that a round needs (quorum) are there after 5 s" in stage.log()
    assert len(load_checkpoint(out).history) == done + 2


def test_the_command_writes_relative_folders_where_it_was_started_and_resumes_from_there(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "app")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(short_folder())}

    def up(*config):
        words = [sys.executable, "-m", "hfp", "flower", "up", "--nodes", "2", "--run", "."]
        given = "clients=2 head-start=1.0 train-images=60 " + " ".join(config)
        done = subprocess.run(
            [*words, "--run-config", given],
            cwd=tmp_path / "app", env=environment, timeout=PATIENCE, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    out = tmp_path / "app" / "runs" / "mine"
    up("rounds=1", 'out="runs/mine"')
    assert len(records(out)) == 1
    up("rounds=2", 'resume="runs/mine"')
    assert [record["round"] for record in records(out)] == [1, 2]
    assert (out / "global.safetensors").exists()


def next_checkpoint(out, rounds, run):
    """The checkpoint after one more round; rounds take seconds, so that each is seen."""
    found = []

    def is_there():
        found[:] = [load_checkpoint(out)]
        return len(found[0].history) > rounds

    until(is_there, "the round to end", run)
    assert len(found[0].history) == rounds + 1
    return found[0]


def assert_alone_held_stays(before, after):
    """What only client 1 held in the last round has kept its values; the rest has moved."""
    samples = [client.samples for client in after.history[0].clients]
    context = set_up_own(after.experiment, load_problem(APP / "held_problem.py"), samples).context
    held = {client: context.groups.index_map(plan).masks() for client, (_, _, plan) in after.run_state.plans.items()}
    alone = moved = 0
    for name in context.parameters:
        old, new = before.run_state.state.weights[name], after.run_state.state.weights[name]
        only = held[1][name] & ~held[0][name] & ~held[2][name]
        alone += int(only.sum())
        assert torch.equal(old[only], new[only])
        moved += int((old != new).sum())
    assert alone > 0
    assert moved > 0


def test_only_nodes_with_a_registered_key_are_admitted(tmp_path):
    environment = {"HFP_TEST_FOLDER": str(tmp_path), "OMP_NUM_THREADS": "1", "TMPDIR": str(short_folder())}
    with LocalDeployment(tmp_path / "deployment", secure=True, environment=environment) as deployment:
        deployment.start_link()
        deployment.start_nodes(1)
        make_node_key(deployment.folder / "stranger")
        stranger = deployment.start_node("stranger", "partition-id=0 num-partitions=1")
        keyless = deployment.start_node("keyless", "partition-id=0 num-partitions=1", key="")
        out = tmp_path / "out"
        run = deployment.start_run(APP, [f'clients=1 rounds=1 out="{out}"'])
        run.wait(PATIENCE)
        assert [statuses(record) for record in records(out)] == [{0: "in time"}]
        until(lambda: stranger.poll() is not None and keyless.poll() is not None, "the others to give up")
        listed = deployment.flwr("supernode", "list", CONNECTION, "--format", "json", timeout=PATIENCE).stdout
        assert listed.count('"online"') == 1
