"""Record what goes into every layer with weights, and the gradient of what comes out, in an ordinary backward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hfp.importance.capture.squares import LayerCall
from hfp.layers.products import computed_weight, owner_of


@dataclass
class CallRecorder:
    """The recorded calls of one batch.

    Args:
        calls: the calls by the layer's name. A call whose output had no influence on the loss is left out.
        opaque: the layers that return no tensor, such as recurrent ones, or are called with keywords. Their calls do
            not show the gradients of single samples.
    """

    calls: dict[str, list[LayerCall]] = field(default_factory=dict)
    opaque: set[str] = field(default_factory=set)


def layers_and_bare(model: nn.Module) -> tuple[dict[str, nn.Module], list[str]]:
    """Find the layers whose own parameters a call determines, and the names of all other parameters.

    The others are parameters beside child modules (class tokens, position embeddings) and those that several layers
    share, under the first of their names. A call of one layer does not hold all of their gradient. A layer whose weight
    is computed from others (weight norm, spectral norm, masks) counts with that weight, not with what it is made from.
    """
    uses = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    layers: dict[str, nn.Module] = {}
    bare: list[str] = []
    seen: set[int] = set()
    modules = dict(model.named_modules())
    for name, module in modules.items():
        own = dict(module.named_parameters(recurse=False))
        if owner_of(f"{name}.")[0] in layers:
            continue
        computed = computed_weight(module) is not None
        called = not isinstance(modules.get(name.rpartition(".")[0]), nn.MultiheadAttention)  # calls no layers
        alone = called and (computed or not any(True for _ in module.children()))
        if alone and (own or computed) and all(uses[id(p)] == 1 for p in own.values()):
            layers[name] = module
        else:
            bare += [f"{name}.{key}" if name else key for key, parameter in own.items() if id(parameter) not in seen]
        seen.update(map(id, own.values()))
    return layers, bare


@contextmanager
def recording_calls(layers: Mapping[str, nn.Module]) -> Iterator[CallRecorder]:
    """Fill the recorder with every forward and backward through the layers, while open.

    Nothing needs to require gradients.
    """
    recorder = CallRecorder()
    handles = [layer.register_forward_hook(_record(recorder, name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _record(recorder: CallRecorder, name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if kwargs or not isinstance(output, Tensor):
            recorder.opaque.add(name)
            return output
        kept = tuple(value.detach() if isinstance(value, Tensor) else value for value in args)
        written = output if output.requires_grad else output.detach().requires_grad_()
        written.register_hook(lambda grad: recorder.calls.setdefault(name, []).append(LayerCall(kept, grad.detach())))
        return written.clone() if written.is_leaf else written  # the next layer may write to it in place

    return hook
