"""Two gloo processes with DistributedDataParallel and fully_shard, against one process."""

import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import isthmus
from isthmus.errors import UnsupportedModel
from isthmus.nets.mlp import mlp

RADIUS, STEPS, ROWS = 0.3, 30, 32
PROCESSES = 2


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 10, generator=generator, dtype=torch.float64)
    return x, 3 * torch.randn(ROWS, 3, generator=generator, dtype=torch.float64)


def _sets() -> isthmus.Product:
    return isthmus.Product({"layer2": isthmus.Ball(RADIUS), "fc": isthmus.FloorAndRatio(0.05, 4.0)})


def _trained(kind: str) -> dict[str, Tensor]:
    """Train, every process with its share of the rows, and give the weights."""
    rank = dist.get_rank() if kind != "alone" else 0
    model = mlp(10, [24, 16], 3).double()
    x, y = _data()
    if kind != "alone":
        mine = slice(rank * ROWS // PROCESSES, (rank + 1) * ROWS // PROCESSES)
        x, y = x[mine], y[mine]
    wrapped: nn.Module = model
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (PROCESSES,))
        unprepared = mlp(10, [24, 16], 3, paired=False)
        fully_shard(unprepared, mesh=mesh)
        with pytest.raises(UnsupportedModel, match="before fully_shard"):
            isthmus.attach(unprepared, torch.optim.Adam(unprepared.parameters()), blocks="layer2", head="fc")
        isthmus.mirror(model.layer2)
        for layer in (model.layer2, model):
            fully_shard(layer, mesh=mesh)
    elif kind == "ddp":
        isthmus.mirror(model.layer2)
        wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(wrapped.parameters(), lr=0.05)
    name = "module.layer2" if kind == "ddp" else "layer2"
    handle = isthmus.attach(wrapped, optimizer, blocks=name, head="fc", constraint=_sets(), decay=0.1)
    digest, state = handle.digest, handle.state_dict()
    for step in range(STEPS):
        if step == STEPS // 2:
            handle.load_state_dict(state)
        optimizer.zero_grad()
        (wrapped(x) - y).square().mean().backward()
        optimizer.step()
    assert handle.digest == digest
    own = dict(model.named_parameters())
    center = {each: value for each, value in handle.constraint.center.items() if each.startswith("layer2")}
    whole = {
        each: value.full_tensor() if hasattr(value, "full_tensor") else value
        for each, value in center.items()
    }
    found = {
        each: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach()
        for each, value in own.items()
    }
    squares = sum((found[each].double() - value.double()).square().sum() for each, value in whole.items())
    assert 0.99 * RADIUS < math.sqrt(float(squares)) <= RADIUS
    norms = torch.linalg.vector_norm(found["fc.weight"].double(), dim=0)
    assert norms.min() >= 0.05 * (1 - 1e-6)
    assert norms.max() <= 4 * norms.min() * (1 + 1e-6)
    assert len(get_optimizer_state_dict(wrapped, optimizer)["state"]) == 6
    assert len(get_model_state_dict(wrapped)) == 6
    return found


def _process(rank: int, place: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=PROCESSES)
    for kind in ("ddp", "fsdp"):
        found = _trained(kind)
        if rank == 0:
            torch.save(found, Path(place) / f"{kind}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=PROCESSES)
    alone = _trained("alone")
    for kind in ("ddp", "fsdp"):
        for name, value in torch.load(tmp_path / f"{kind}.pt", weights_only=True).items():
            torch.testing.assert_close(value, alone[name], rtol=1e-9, atol=1e-9)
