"""The global model, and the part of it that the largest client would hold: is a method bad, or what nobody trains?

    python examples/benchmarks/widest.py --rank 1 --seeds 3 --data examples/benchmarks/widest.csv

Where no client is as large as the global model, a method may leave a part of that untrained, and the whole is tested
with it. This tests the submodel of the coming round's largest client as well, after the last round, both with
batch-norm statistics taken anew over all clients' data. Finished runs are kept (--out) and not repeated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from data_files import put, spread
from torch import nn

from hfp import Experiment
from hfp.atomic import write_atomically
from hfp.comparison.table import Spread
from hfp.federation.rounds import rounds
from hfp.federation.setup import Federation, set_up
from hfp.methods import ServerState
from hfp.reconstruct import IndexMap, compact_model
from hfp.training import batch_norm as batchnorm
from hfp.training.local_step import LARGE_BATCH, LocalData, predict, statistics_of

SETTING = ("dataset", "model", "rank", "rounds", "head_start", "seeds", "method")
METHODS = ("ca-hfp", "fedavg", "fedmp", "heterofl", "fedrolex", "fjord", "ca-hfp-paper")


def main() -> None:
    """Run what is missing and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--head-start", type=float, default=Experiment.head_start, help="`hfp run --help` tells what it is"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/widest"))
    parser.add_argument("--data", type=Path, help="write the figures to this data file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    print("| method | the whole, % | the largest client's part, % |\n|---|---|---|")
    for method in given.methods:
        found = [
            accuracies(
                Experiment(
                    method=method,
                    seed=seed,
                    dataset=given.dataset,
                    model=given.model,
                    rank=given.rank,
                    rounds=given.rounds,
                    head_start=given.head_start,
                    evaluate=given.rounds,
                ),
                given.out,
            )
            for seed in range(given.seeds)
        ]
        whole, part = (list(column) for column in zip(*found, strict=True))
        print(f"| {method} | {Spread.of(whole):.1f} | {Spread.of(part):.1f} |", flush=True)
        if given.data:
            line = {name: getattr(given, name) for name in SETTING if name != "method"} | {"method": method}
            put(given.data, SETTING, [{**line, **spread("whole", whole, ".1f"), **spread("part", part, ".1f")}])


def accuracies(experiment: Experiment, folder: Path) -> tuple[float, float]:
    """(of the whole, of the largest client's part) after the last round, in percent."""
    of = experiment
    file = folder / f"{of.dataset}-{of.model}-{of.method}-{of.rank}-{of.rounds}-{of.head_start:g}-{of.seed}.json"
    if not file.exists():
        federation = set_up(experiment)
        *_, last = rounds(federation)
        whole = accuracy(federation, last.state, IndexMap.identity(federation.model))
        part = accuracy(federation, last.state, widest(federation, last.state))
        write_atomically(file, json.dumps([whole, part]).encode())
    whole, part = json.loads(file.read_text())
    return whole, part


def widest(federation: Federation, state: ServerState) -> IndexMap:
    """Where the submodel of the client that leaves out the least lies, as the method would plan it now."""
    context = federation.context
    client = min(context.clients, key=lambda client: client.ratio)
    return context.groups.index_map(federation.method.plan(context, state, client))


@torch.no_grad()
def accuracy(federation: Federation, state: ServerState, index_map: IndexMap) -> float:
    """Of a part of the global model on the whole test set, in percent."""
    model = compact_model(federation.model, index_map, index_map.restrict(state.weights))
    pool_statistics(federation, model)
    test = federation.dataset.test
    data = LocalData(test.images, test.labels, federation.dataset.normalise)
    schedule = torch.arange(len(test)).split(LARGE_BATCH)
    return 100 * float(predict(model.eval(), data, schedule, federation.training).correct.mean())


def pool_statistics(federation: Federation, model: nn.Module) -> None:
    """Give a model the batch-norm statistics of all clients' data."""
    pool = batchnorm.Pool()
    for shard in federation.shards:
        pool.add(statistics_of(model, shard, federation.training), weight=len(shard.labels))
    model.load_state_dict({**model.state_dict(), **pool.result()})


if __name__ == "__main__":
    main()
