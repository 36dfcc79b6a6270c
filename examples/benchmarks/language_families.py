"""Which families of language models can be pruned from folder to folder, and what of them?

Makes a folder of several shards for each class, from a configuration of two blocks with random weights, and prunes it
three times: half of the heads and feed-forward channels, half of the hidden width, and the last block. Each result
is read again. What transformers alone reads must compute the same; generation with a cache must agree with generation
without; and what is put back into the full model must give the full model.

    python examples/benchmarks/language_families.py --data examples/benchmarks/language_families.csv
    python examples/benchmarks/language_families.py --only Phi3 Mixtral --again

Each class runs in a process of its own; nothing is downloaded. Classes that are in the data file are not run again
unless --again is given.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from data_files import Line, put, read
from zoo_models import DECODERS, GROUPED, MIXTURES, STATE_SPACE, TEXT

import hfp
from hfp.errors import InputError
from hfp.language.prune import prune_folder
from hfp.reconstruct import MapError

MORE: dict[str, dict[str, Any]] = {
    "Olmo3ForCausalLM": {**GROUPED, "sliding_window": 8},
    "Phi3ForCausalLM, as many key-value heads": {},
    "FalconForCausalLM, one key-value head": {"new_decoder_architecture": False, "multi_query": True},
}
CLASSES = {**DECODERS, **MIXTURES, **STATE_SPACE, **MORE}
HALF = hfp.Budget(ratio=0.5)
WIDTHS = ("heads", "feed-forward")
SHARD_BYTES = 20_000
SECONDS = 120


class Wrong(Exception):
    """A property that does not hold."""


def main() -> None:
    """Examine the classes that are not in the data file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).with_suffix(".csv"), help="the data file")
    parser.add_argument("--only", nargs="*", default=[""], help="classes whose name contains one of these")
    parser.add_argument("--again", action="store_true", help="examine classes again that are in the data file")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    known = {line["class"] for line in read(arguments.data)}
    for name in CLASSES:
        if any(part in name for part in arguments.only) and (arguments.again or name not in known):
            line = in_process(name)
            print(json.dumps(line), flush=True)
            put(arguments.data, ("class",), [line])


def in_process(name: str) -> Line:
    """Examine a class in a process of its own."""
    here, there = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_send, args=(there, name))
    process.start()
    there.close()
    try:
        found: Line = here.recv()
    except EOFError:
        found = {"class": name, "outcome": "no result", "reason": f"none within {SECONDS} s"}
    process.join()
    return found


def _send(pipe: Any, name: str) -> None:
    signal.alarm(SECONDS * 10)  # others may use the machine
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        pipe.send(examined(name))
    except Exception as error:
        pipe.send({"class": name, "outcome": "no model", "reason": _line(error)})


def examined(name: str) -> Line:
    """What can be removed of a class, who reads the result, and what is refused with the reason."""
    model = made(name)
    line: Line = {"class": name, "outcome": "pass"}
    reasons: list[str] = []
    unsaid: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model.save_pretrained(folder / "full", max_shard_size=SHARD_BYTES)
        asked: dict[str, dict[str, Any]] = {
            "widths": {"budget": HALF, "widths": WIDTHS},
            "hidden": {"budget": HALF, "widths": "hidden"},
            "blocks": {"drop_blocks": [1]},
        }
        for what, options in asked.items():
            try:
                report = prune_folder(folder / "full", folder / what, **options)
                check(model, folder / what, report.plain)
            except (InputError, MapError) as error:
                line |= {what: "no"}
                reasons.append(f"{what}: {_line(error, named=False)}")
                continue
            except Wrong as error:
                line |= {what: "wrong", "outcome": "wrong"}
                reasons.append(f"{what}: {error}")
                continue
            gone = {width.kind for width in report.widths if width.after != width.before}
            line |= {kind: "yes" if kind in gone else "no" for kind in options.get("widths", ()) if what == "widths"}
            line |= {} if what == "widths" else {what: "yes" if what == "blocks" or what in gone else "no"}
            line |= {f"{what}_read_by": "transformers" if report.plain else "hfp"}
            reasons += [note for note in report.notes if "can't become" in note]
            unsaid += [note.partition(": ")[2] for note in report.notes if "can't be told" in note]
    if line.pop("widths", "") == "no":
        line |= dict.fromkeys(WIDTHS, "no")
    told = {"reason": reasons, "not_said_by_configuration": unsaid}
    return {**line, **{key: "; ".join(dict.fromkeys(all_)).replace(str(place), "FOLDER") for key, all_ in told.items()}}


def made(name: str) -> Any:
    """A model with random weights that are large enough for every part to matter."""
    kind = getattr(transformers, name.partition(",")[0])
    torch.manual_seed(0)
    model = kind(kind.config_class(**{**TEXT, **CLASSES[name]})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def check(full: Any, folder: Path, plain: bool) -> None:
    """Make sure that a pruned folder is what it should be.

    Raises:
        Wrong: it is not.
    """
    found = hfp.from_pretrained(folder)
    state = full.state_dict()
    back = found.index_map.embed(found.model.state_dict(), into=state)
    if not all(back[name].equal(tensor) for name, tensor in state.items()):
        raise Wrong("put back, it does not give the full model")
    words = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(1))
    if plain:
        alone = type(full).from_pretrained(folder).eval()
        with torch.no_grad():
            if not found.model(input_ids=words).logits.equal(alone(input_ids=words).logits):
                raise Wrong("transformers alone computes something else")
    if not full.can_generate() or type(full).__name__.startswith("OpenAI"):
        return
    texts = [_generated(found.model, words, use_cache) for use_cache in (True, False)]
    if texts[0] != texts[1] and _generated(full, words, True) == _generated(full, words, False):
        raise Wrong("generation with a cache differs from generation without")


def _generated(model: Any, words: torch.Tensor, use_cache: bool) -> list[list[int]]:
    found = model.generate(
        words[:, :4], max_new_tokens=6, do_sample=False, use_cache=use_cache, eos_token_id=None, pad_token_id=0
    )
    return [[int(word) for word in row] for row in found]


def _line(error: Exception, named: bool = True) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if named else text


if __name__ == "__main__":
    sys.exit(main())
