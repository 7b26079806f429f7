"""Published layer profiles as chains of blocks: PipeDream's (a GPU) and PipeEdge's (an edge board).

What the files do not say is assumed here, in one place:

- PipeDream's tables name no GPU: it is taken to be a V100 (15.7 TFLOP/s FP32) that reaches the catalogue's
  share of its peak. PipeEdge's board is given the rate at which its seconds do the model's operations.
- PipeDream gives bytes per batch. The batch of an image model is its input's bytes over those of one image
  of 3 × 224 × 224 or 3 × 299 × 299 floats; that of a translation model follows from an LSTM's hidden state.
- ``Input`` nodes take no time: the published figure is that of the data loader.
- PipeEdge measured inference: a backward pass is taken to cost twice the forward pass, and the weights
  follow from the width and the tokens of the transformer, whose heads are 64 wide.
- A layer keeps its own output for the backward pass, also where an operation works in place.
- A graph that is no chain is put in topological order. Across a cut goes every tensor that is made before
  it and used after it, once; its gradient goes back with as many bytes.
"""

from __future__ import annotations

import csv
import heapq
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import fsum
from pathlib import Path
from typing import NamedTuple

import msgspec

from greentrain._checks import require, require_positive
from greentrain.errors import UnavailableError, UsageError

__all__ = ["LayerChain", "ProfiledLayer", "load_chains", "merged", "read_pipedream", "read_pipeedge"]

_FLOAT_BYTES = 4
_TOKEN_BYTES = 8
_IMAGE_SIDES = (224, 299)
_V100_FLOP_PER_S = 15.7e12
# As in the catalogue: training reaches this share of the peak.
_TRAIN_EFFICIENCY = 0.30
_EDGE_BOARD = "RCC-VE-C2000"


class ProfiledLayer(NamedTuple):
    """One layer, or several merged ones, on the profiled machine; seconds and bytes per sample.

    Attributes:
        name: The (first) layer's name.
        forward_s: Seconds of the forward pass.
        backward_s: Seconds of the backward pass.
        param_bytes: Bytes of the weights.
        stash_bytes: Bytes of the outputs of all its layers.
        cut_bytes: Bytes that cross a cut after it; 0 for the last.
        passes_n: Layers in it that take time.
    """

    name: str
    forward_s: float
    backward_s: float
    param_bytes: int
    stash_bytes: int
    cut_bytes: int
    passes_n: int


class LayerChain(msgspec.Struct, frozen=True, kw_only=True):
    """A profiled model as a chain.

    Attributes:
        model: Its name.
        layers: In the order of execution.
        input_bytes: Bytes per sample of its input.
        batch: Samples of the profiled batch.
        flop_per_s: Training rate that the profiled machine is taken to have.
        source: Where it comes from.
        block_n: Layers that make up one block of a transformer.
        heads: Attention heads of every block; 0 where there are none.
        tokens_n: Tokens per sample.
    """

    model: str
    layers: tuple[ProfiledLayer, ...]
    input_bytes: int
    batch: int
    flop_per_s: float
    source: str
    block_n: int = 1
    heads: int = 0
    tokens_n: int = 0

    def __post_init__(self) -> None:
        require(len(self.layers) > 0, f"profile {self.model!r} has no layers")
        require_positive(input_bytes=self.input_bytes, batch=self.batch, flop_per_s=self.flop_per_s)


def load_chains(data: Path, *, most_layers: int = 32) -> dict[str, LayerChain]:
    """All profiles of a data folder by name, with at most so many blocks each.

    Raises:
        UnavailableError: The folder holds no such profiles.
        UsageError: A profile cannot be read.
    """
    folder = data / "planner_profiles"
    if not folder.is_dir():
        raise UnavailableError(
            f"{data} has no folder planner_profiles.", hint="Name the folder of public measurements with --data."
        )
    chains = [*read_pipedream(folder), *read_pipeedge(folder)]
    return {chain.model: merged(chain, most_layers) for chain in chains}


def merged(chain: LayerChain, most_layers: int) -> LayerChain:
    """The same chain in at most so many blocks; bytes and seconds add up to the same sums.

    Layers without work of their own join the one before, at the start the one after. Then cuts are given up
    one by one: first those that separate the least work for the most bytes.
    """
    require_positive(most_layers=most_layers)
    if chain.block_n > 1 and len(chain.layers) > most_layers:
        # Whole blocks of a transformer can be shared inside a sample.
        starts = range(0, len(chain.layers), chain.block_n)
        whole = tuple(_block(chain.layers[start : start + chain.block_n]) for start in starts)
        return merged(msgspec.structs.replace(chain, layers=whole, block_n=1), most_layers)
    blocks: list[list[ProfiledLayer]] = []
    for layer in chain.layers:
        if blocks and (layer.passes_n == 0 or all(other.passes_n == 0 for other in blocks[-1])):
            blocks[-1].append(layer)
        else:
            blocks.append([layer])
    while len(blocks) > most_layers:
        chosen = min(range(len(blocks) - 1), key=lambda index: _worth(blocks[index], blocks[index + 1]))
        blocks[chosen : chosen + 2] = [blocks[chosen] + blocks[chosen + 1]]
    return msgspec.structs.replace(chain, layers=tuple(_block(block) for block in blocks))


def _worth(left: Sequence[ProfiledLayer], right: Sequence[ProfiledLayer]) -> float:
    work_s = sum(layer.forward_s + layer.backward_s for layer in (*left, *right))
    return work_s / max(left[-1].cut_bytes, 1)


def _block(layers: Sequence[ProfiledLayer]) -> ProfiledLayer:
    return ProfiledLayer(
        name=layers[0].name,
        forward_s=fsum(layer.forward_s for layer in layers),
        backward_s=fsum(layer.backward_s for layer in layers),
        param_bytes=sum(layer.param_bytes for layer in layers),
        stash_bytes=sum(layer.stash_bytes for layer in layers),
        cut_bytes=layers[-1].cut_bytes,
        passes_n=sum(layer.passes_n for layer in layers),
    )


class _Node(NamedTuple):
    """A row of PipeDream's table: bytes and seconds of the whole batch."""

    name: str
    layer: str
    forward_s: float
    backward_s: float
    output_bytes: tuple[int, ...]
    param_bytes: int


def read_pipedream(folder: Path) -> list[LayerChain]:
    """The models of ``pipedream_layer_profiles.csv`` and ``pipedream_edges.csv``, every layer by itself.

    Raises:
        UsageError: A graph has a cycle, or a batch size cannot be found.
    """
    nodes: defaultdict[str, dict[str, _Node]] = defaultdict(dict)
    for row in _rows(folder / "pipedream_layer_profiles.csv"):
        nodes[row["model"]][row["node"]] = _node(row)
    edges: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in _rows(folder / "pipedream_edges.csv"):
        edges[row["model"]].append((row["src"], row["dst"]))
    return [_pipedream_chain(model, graph, edges[model]) for model, graph in nodes.items()]


def _pipedream_chain(model: str, nodes: Mapping[str, _Node], edges: Sequence[tuple[str, str]]) -> LayerChain:
    order = _topological(nodes, edges)
    batch = _batch(model, nodes.values())
    position = {name: index for index, name in enumerate(order)}
    last_use = {name: position[name] for name in order}
    for src, dst in edges:
        last_use[src] = max(last_use[src], position[dst])
    layers: list[ProfiledLayer] = []
    for index, name in enumerate(order):
        node = nodes[name]
        crossing = sum(sum(nodes[other].output_bytes) for other in order[: index + 1] if last_use[other] > index)
        layers.append(
            ProfiledLayer(
                name=f"{name} {node.layer.split('(')[0]}",
                forward_s=node.forward_s / batch,
                backward_s=node.backward_s / batch,
                param_bytes=node.param_bytes,
                stash_bytes=sum(node.output_bytes) // batch,
                cut_bytes=crossing // batch,
                passes_n=int(node.forward_s + node.backward_s > 0),
            )
        )
    return LayerChain(
        model=model,
        layers=tuple(layers),
        input_bytes=_input_bytes(nodes.values(), batch),
        batch=batch,
        flop_per_s=_V100_FLOP_PER_S * _TRAIN_EFFICIENCY,
        source="PipeDream's profile of a GPU, taken to be a V100",
    )


def _topological(nodes: Iterable[str], edges: Sequence[tuple[str, str]]) -> list[str]:
    """Producers before consumers; of those that are ready, the lowest node number first."""
    after: defaultdict[str, list[str]] = defaultdict(list)
    missing = dict.fromkeys(nodes, 0)
    for src, dst in edges:
        after[src].append(dst)
        missing[dst] += 1
    ready = [(_number(name), name) for name, count in missing.items() if count == 0]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        _, name = heapq.heappop(ready)
        order.append(name)
        for following in after[name]:
            missing[following] -= 1
            if missing[following] == 0:
                heapq.heappush(ready, (_number(following), following))
    if len(order) < len(missing):
        raise UsageError(f"the graph has a cycle: {len(missing) - len(order)} of {len(missing)} nodes lie on one.")
    return order


def _number(name: str) -> int:
    return int(name.removeprefix("node"))


def _batch(model: str, nodes: Iterable[_Node]) -> int:
    """Samples of the profiled batch: from the bytes of the images, or of an LSTM's hidden state."""
    for node in nodes:
        if node.layer.startswith("Input") and sum(node.output_bytes) > 0:
            for side in _IMAGE_SIDES:
                batch, rest = divmod(sum(node.output_bytes), 3 * side * side * _FLOAT_BYTES)
                if batch > 0 and rest == 0:
                    return batch
        width = re.match(r"LSTM\(\d+, (\d+)\)", node.layer)
        if width and len(node.output_bytes) > 1:
            return node.output_bytes[1] // (int(width.group(1)) * _FLOAT_BYTES)
    raise UsageError(f"profile {model!r}: no input image and no LSTM tells the batch size.")


def _input_bytes(nodes: Iterable[_Node], batch: int) -> int:
    """Bytes per sample of the input; token numbers, one per row of the first embedding, where none are given."""
    embedded = 0
    for node in nodes:
        if node.layer.startswith("Input") and sum(node.output_bytes) > 0:
            return sum(node.output_bytes) // batch
        width = re.match(r"Embedding\(\d+, (\d+)", node.layer)
        if width:
            embedded = sum(node.output_bytes) // (int(width.group(1)) * _FLOAT_BYTES)
    return embedded * _TOKEN_BYTES // batch


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise UnavailableError(f"{path}: {error.strerror}.", hint="Name the data folder with --data.") from error


def _node(row: Mapping[str, str]) -> _Node:
    outputs = tuple(int(float(text)) for text in row["activation_bytes"].strip("[]").split(";"))
    loads = row["layer"].startswith("Input")
    return _Node(
        name=row["node"],
        layer=row["layer"],
        forward_s=0.0 if loads else float(row["fwd_ms"]) / 1e3,
        backward_s=float(row["bwd_ms"]) / 1e3,
        output_bytes=outputs,
        param_bytes=int(float(row["param_bytes"])),
    )


_EDGE_MODEL = re.compile(
    r"^(?P<model>\S+):\n  layers: \d+\n  mem_MB: \[[^\]]*\]\n  parameters_in: (?P<input>\d+)\n"
    r"  parameters_out: \[(?P<out>[^\]]*)\]",
    re.MULTILINE,
)
_EDGE_TIMES = re.compile(
    r"^    (?P<model>\S+):\n    - batch_size: (?P<batch>\d+)\n      dtype: \S+\n      time_s: \[(?P<time>[^\]]*)\]",
    re.MULTILINE,
)
# PipeEdge cuts a transformer block into four: attention, its projection, the first and second half of the MLP.
_HEAD_WIDTH = 64
_PARTS = ("attention", "projection", "mlp-in", "mlp-out")


def read_pipeedge(folder: Path) -> list[LayerChain]:
    """The vision transformers of ``pipeedge_block1.yml`` and ``pipeedge_block2.yml``, a quarter block per layer.

    Raises:
        UsageError: The layers of the two files do not match.
    """
    text = "".join((folder / f"pipeedge_block{number}.yml").read_text(encoding="utf-8") for number in (1, 2))
    models = {match["model"]: match for match in _EDGE_MODEL.finditer(text) if match["out"]}
    board = re.search(rf"^{_EDGE_BOARD}:\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    if board is None:
        raise UsageError(f"{folder}: the PipeEdge files have no board {_EDGE_BOARD!r}.")
    found: list[LayerChain] = []
    for match in _EDGE_TIMES.finditer(board.group(1)):
        shape = models[match["model"]]
        outputs_n = [int(word) for word in shape["out"].split(",")]
        times_s = [float(word) / int(match["batch"]) for word in match["time"].split(",")]
        found.append(_pipeedge_chain(match["model"], int(shape["input"]), outputs_n, times_s, int(match["batch"])))
    return found


def _pipeedge_chain(
    model: str, input_n: int, outputs_n: Sequence[int], times_s: Sequence[float], batch: int
) -> LayerChain:
    if len(outputs_n) != len(times_s):
        raise UsageError(f"profile {model!r}: {len(outputs_n)} outputs, {len(times_s)} times; expected as many.")
    side = round((input_n / 3) ** 0.5)
    tokens_n = (side // 16) ** 2 + 1
    width = outputs_n[1] // tokens_n
    weights = _weights_n(width, len(outputs_n), classes=outputs_n[-1])
    attention_flop = len(outputs_n) / len(_PARTS) * 4 * tokens_n**2 * width
    flop = 2 * tokens_n * sum(weights) + attention_flop
    layers = tuple(
        ProfiledLayer(
            name=f"block{index // len(_PARTS)} {_PARTS[index % len(_PARTS)]}",
            forward_s=time_s,
            backward_s=2 * time_s,
            param_bytes=weight * _FLOAT_BYTES,
            stash_bytes=output * _FLOAT_BYTES,
            cut_bytes=output * _FLOAT_BYTES if index + 1 < len(outputs_n) else 0,
            passes_n=1,
        )
        for index, (output, time_s, weight) in enumerate(zip(outputs_n, times_s, weights, strict=True))
    )
    return LayerChain(
        model=model.split("/")[-1],
        layers=layers,
        input_bytes=input_n * _FLOAT_BYTES,
        batch=batch,
        flop_per_s=flop / sum(times_s),
        source=f"PipeEdge's profile of {_EDGE_BOARD}",
        block_n=len(_PARTS),
        heads=width // _HEAD_WIDTH,
        tokens_n=tokens_n,
    )


def _weights_n(width: int, layers_n: int, *, classes: int) -> list[int]:
    """Weights of each quarter of a vision transformer's blocks; embedding and head belong to the ends."""
    square = width * width
    quarter = (3 * square + 5 * width, square + width, 4 * square + 6 * width, 4 * square + width)
    found = [quarter[index % len(quarter)] for index in range(layers_n)]
    found[0] += 3 * 16 * 16 * width + width
    found[-1] += (width + 1) * classes
    return found
