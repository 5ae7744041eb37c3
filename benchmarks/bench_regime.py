"""The regime in loops: exact zeros at the start, what projecting costs, and radii that hold for 1,000 steps.

Two processes of DistributedDataParallel and fully_shard run over gloo; Lightning Fabric and accelerate if
they are installed (`make test-all` does that).
"""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from table import Table
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import isthmus
from isthmus.nets.cnn import cnn
from isthmus.nets.mlp import mlp
from isthmus.nets.resnet import resnet18
from isthmus.sharded import whole

RADIUS, STEPS = 0.3, 1000
EXCESS = 1e-6  # of the radius, relative
ENTRIES, SECONDS = 10**6, 0.3
SHARE = 0.02  # of a step
BATCH = 128
PROCESSES = 2

Step = Callable[[], Any]


class Loop(NamedTuple):
    """Training as a step to repeat."""

    name: str
    model: nn.Module
    handle: isthmus.Regime
    step: Step


def nonzero(network: nn.Module, block: str, x: Tensor) -> int:
    """Whether outputs at the start are not all exactly 0, in training and in evaluation mode."""
    with torch.no_grad():
        return sum(bool(network.train(training)(x).any()) for training in (True, False))


def exact_zeros() -> None:
    table = Table("outputs at the start that are not exactly 0")
    generator = torch.Generator().manual_seed(0)
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    for activation in (nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid, nn.SiLU, nn.Softplus):
        for rows, what in (((1,), "one row"), ((2, 3, 7, 8, 33, 128), "2 to 128 rows")):
            count, total, most = 0, 0, 0.0
            sizes = itertools.product(dtypes, (1, 3, 17, 100, 784), (2, 6, 10, 24, 34, 100, 256), rows)
            for dtype, inputs, width, batch in sizes:
                network = mlp(inputs, [width], 3, activation=activation, seed=width).to(dtype)
                isthmus.mirror(network.get_submodule("layer1"))
                x = torch.randn(batch, inputs, generator=generator).to(dtype)
                count, total = count + nonzero(network, "layer1", x), total + 2
                with torch.no_grad():
                    first, second = network[:2](x).chunk(2, 1)
                    size = nn.functional.linear(
                        first.abs() + second.abs(), network.get_parameter("fc.weight").abs()
                    )
                    most = max(
                        most, float((network(x).abs() / size).nan_to_num().max()) / torch.finfo(dtype).eps
                    )
            exact = activation in {nn.Tanh, nn.ReLU}
            note = f"of {total}" + ("" if exact else f"; not required; at most {most:.2g} eps of sum |V| |g|")
            table.row(f"MLP, {activation.__name__}, {what}", count, 0 if exact else total, note)
    for name, block, build in (
        ("CNN", "stage3", lambda width: cnn(3, width, 10)),
        ("ResNet-18", "layer4", lambda width: resnet18(10, width=width, small_images=True)),
    ):
        count, total = 0, 0
        for width, batch, side in itertools.product((6, 16, 64), (2, 5, 16), (17, 32)):
            network = build(width)
            isthmus.mirror(network.get_submodule(block))
            x = torch.randn(batch, 3, side, side, generator=generator)
            count, total = count + nonzero(network, block, x), total + 2
        table.row(f"{name}, 2 to 16 rows", count, 0, f"of {total}")


def projection() -> None:
    table = Table("projections, seconds")
    v = torch.randn(ENTRIES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sets = isthmus.FloorAndRatio(1e-3, 4.0).at(v)
    table.row("onto floor and ratio, 10^6 entries", best(lambda: sets.project(v)), SECONDS, "best of 5")


def share_of_a_step() -> None:
    table = Table(f"ResNet-18, batch {BATCH} of 32 x 32: seconds of projecting over those of a step, one run")
    for width in (512, 64):
        model = resnet18(10, width=width, small_images=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        sets = isthmus.Product({"layer4": isthmus.Ball(1.0), "fc": isthmus.FloorAndRatio()})
        handle = isthmus.attach(model, optimizer, blocks="layer4", head="fc", constraint=sets)
        step = partial(classify, model, optimizer)
        seconds, projecting = best(step, 3), best(handle.project)
        note = f"{projecting * 1e3:.1f} ms of {seconds * 1e3:.0f} ms"
        handle.remove()
        mirrored = best(step, 3)
        for module in model.get_submodule("layer4").modules():
            if isinstance(module, nn.Conv2d):
                module.__class__ = nn.Conv2d
        note += f"; convolutions in halves: {mirrored / best(step, 3):.2f} times a step with plain ones"
        table.row(f"last stage {width} wide", projecting / seconds, SHARE, note)


def classify(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step on random images."""
    optimizer.zero_grad()
    images = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(model(images), torch.arange(BATCH) % 10).backward()
    optimizer.step()


def best(run: Step, times: int = 5) -> float:
    """The least of the seconds of some runs, after one that is not counted."""
    run()
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def problem(rows: int = 64) -> tuple[nn.Sequential, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(rows, 10, generator=generator), 3 * torch.randn(rows, 3, generator=generator)
    model = mlp(10, [24, 16], 3)
    isthmus.mirror(model.get_submodule("layer2"))
    return model, x, y


def distance(model: nn.Module, handle: isthmus.Regime) -> float:
    """From the center, written down once more in float64."""
    own, center = dict(model.named_parameters()), handle.constraint.center
    parts = [whole(own[name].detach()).double() - whole(center[name]).double() for name in center]
    return math.sqrt(sum(float(part.square().sum()) for part in parts))


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, foreach=False),
    "SGD, foreach": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, foreach=True),
    "SGD, fused": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05, foreach=False),
    "Adam, foreach": lambda p: torch.optim.Adam(p, lr=0.05, foreach=True),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=0.05, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05, foreach=False),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, lr=0.05, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
    "L-BFGS": lambda p: torch.optim.LBFGS(p, lr=0.5, max_iter=3),
}
WAYS = ("model compiled", "step compiled", "bfloat16 and GradScaler", "gradients of 5 added up")


def loop(name: str, way: str) -> Loop:
    """An optimizer in one process, used in a way of these or in none."""
    model, x, y = problem()
    optimizer = OPTIMIZERS[name]([*model.parameters()])
    handle = isthmus.attach(model, optimizer, blocks="layer2", head="fc", constraint=isthmus.Ball(RADIUS))
    run = torch.compile(model) if way == "model compiled" else model
    advance = torch.compile(optimizer.step) if way == "step compiled" else optimizer.step
    scaler = torch.amp.GradScaler("cpu", enabled=way == "bfloat16 and GradScaler")
    counter = itertools.count(1)

    def closure() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=scaler.is_enabled()):
            loss = (run(x) - y).square().mean()
        scaler.scale(loss).backward()
        return loss

    def from_zero() -> float:
        optimizer.zero_grad()
        return closure().item()

    def step() -> None:
        if name == "L-BFGS":
            optimizer.step(from_zero)
            return
        closure()
        if way == "gradients of 5 added up" and next(counter) % 5:
            return
        if scaler.is_enabled():
            scaler.step(optimizer)
            scaler.update()
        else:
            advance()
        optimizer.zero_grad()

    return Loop(f"{name}, {way}" if way else name, model, handle, step)


def wrapped_loop(name: str) -> Loop:
    """Lightning Fabric or accelerate."""
    model, x, y = problem()
    plain = torch.optim.AdamW(model.parameters(), lr=0.05)
    if name == "Lightning Fabric":
        backend: Any = import_module("lightning_fabric").Fabric(accelerator="cpu", devices=1)
        network, optimizer = backend.setup(model, plain)
    else:
        backend = import_module("accelerate").Accelerator(cpu=True)
        network, optimizer = backend.prepare(model, plain)
    handle = isthmus.attach(network, optimizer, blocks="layer2", head="fc", constraint=isthmus.Ball(RADIUS))

    def step() -> None:
        optimizer.zero_grad()
        backend.backward((network(x) - y).square().mean())
        optimizer.step()

    return Loop(name, model, handle, step)


def loops() -> Iterator[Loop]:
    """Every optimizer and wrapper of one process."""
    yield from (loop(name, "") for name in OPTIMIZERS)
    yield from (loop("Adam", way) for way in WAYS)
    for name, module in (("Lightning Fabric", "lightning_fabric"), ("accelerate", "accelerate")):
        if find_spec(module) is not None:
            yield wrapped_loop(name)
        else:
            print(f"{name} is not installed, and left out")


def process(rank: int, place: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=PROCESSES)
    worst = {}
    for name in ("DistributedDataParallel", "fully_shard"):
        model, x, y = problem()
        wrapped: nn.Module = model
        if name == "fully_shard":
            mesh = init_device_mesh("cpu", (PROCESSES,))
            for layer in (model.get_submodule("layer2"), model):
                fully_shard(layer, mesh=mesh)
        else:
            wrapped = DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.05)
        ball = isthmus.Ball(RADIUS)
        handle = isthmus.attach(wrapped, optimizer, blocks="layer2", head="fc", constraint=ball)
        worst[name] = 0.0
        for _ in range(STEPS):
            optimizer.zero_grad()
            (wrapped(x[rank::PROCESSES]) - y[rank::PROCESSES]).square().mean().backward()
            optimizer.step()
            worst[name] = max(worst[name], distance(model, handle))
    if rank == 0:
        torch.save(worst, Path(place) / "worst.pt")
    dist.barrier()
    dist.destroy_process_group()


def radii() -> None:
    table = Table(f"largest distance from the center in {STEPS} steps, above the radius, relative")
    for name, model, handle, step in loops():
        worst = 0.0
        for _ in range(STEPS):
            step()
            worst = max(worst, distance(model, handle))
        torch._dynamo.reset()
        table.row(name, max(0.0, worst / RADIUS - 1), EXCESS, f"at most {worst / RADIUS - 1:+.1e} from it")
    with tempfile.TemporaryDirectory() as place:
        torch.multiprocessing.spawn(process, (place,), nprocs=PROCESSES)
        found = torch.load(Path(place) / "worst.pt", weights_only=True)
    for name, worst in found.items():
        note = f"at most {worst / RADIUS - 1:+.1e} from it; {PROCESSES} processes"
        table.row(name, max(0.0, worst / RADIUS - 1), EXCESS, note)


def main() -> None:
    warnings.filterwarnings("ignore")  # of compilers and wrappers
    projection()
    share_of_a_step()
    radii()
    exact_zeros()


if __name__ == "__main__":
    main()
