"""A model of which every process holds a part: FSDP 2 (PyTorch's `fully_shard`), as DeepSpeed's ZeRO describes it.

The tensors of a layer are gathered while it is computed, and its gradients are added up and dealt out as soon as its backward
pass is done. Processes wait for each other in every layer of every pass, so all make the same passes: each takes its rows of
every batch, and a row of which nothing is learned where it has none. Gradients are sums, as everywhere in this trainer.

`fully_shard`: Zhao et al., 2023, "PyTorch FSDP", arXiv 2304.11277; ZeRO: Rajbhandari et al., 2020, arXiv 1910.02054.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch

from ..errors import ConfigError
from ..progress import is_main
from .division import Division
from .loss import Learner
from .methods import layers_of
from .sharing import Tree

_NEEDED = ("set_gradient_divide_factor", "set_force_sum_reduction_for_comms", "reset_iter_state")
Value = TypeVar("Value")


def divide(learner: Learner, division: Division, device: torch.device) -> None:
    """Leave this process its part of each tensor of `learner`, on `device`. All processes do this together.

    The model has to be the same in all of them; it may lie in main memory, whence it is moved a layer at a time.

    Raises:
        ConfigError: This PyTorch is too old.
    """
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if any(not hasattr(FSDPModule, name) for name in _NEEDED):
        raise ConfigError(
            f"PyTorch {torch.__version__} cannot divide a model.", hint="PyTorch 2.13 can: pip install -U torch."
        )
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for layer in layers_of(learner.model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=division.reshard)
    fully_shard(learner, mesh=mesh)
    for module in _divided(learner):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    for name in learner.passes:
        register_fsdp_forward_method(learner, name)
    learner.divided = True


def free_gathered(learner: Learner) -> None:
    """Free gathered weights that nothing released: no backward pass followed, or the pass failed."""
    if learner.divided:
        cast(Any, learner).reset_iter_state()
        for module in _divided(learner):
            module.reshard()


def deal(tree: Tree, process: int, processes: int) -> Tree:
    """What one process computes of a tree: its trunks, and every n-th row behind them."""
    rows = tree.rows[process::processes]
    if tree.rows and not rows:
        end = tree.end + 1
        rows = [replace(tree.rows[0], ids=tree.rows[0].ids[:end], prompt_length=end)]
    return replace(tree, rows=rows, branches=[deal(branch, process, processes) for branch in tree.branches])


def gather(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each in one piece, on the main process; nothing on the others. All ask together."""
    pieces = ((name, whole(tensor)) for name, tensor in tensors.items())
    return {name: tensor.cpu() for name, tensor in pieces if is_main()}


def whole(value: Value) -> Value:
    """A divided tensor in one piece, where all processes ask for it together; anything else as it is."""
    return cast(Value, cast(Any, value).full_tensor()) if is_divided(value) else value


def part(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What this process holds of `value`, where a tensor `like` it is divided; else all of it."""
    if not is_divided(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    held = cast(Any, like)
    return cast(
        torch.Tensor, distribute_tensor(value.to(like.device), held.device_mesh, held.placements, src_data_rank=None)
    )


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    return cast(torch.Tensor, cast(Any, tensor).to_local()) if is_divided(tensor) else tensor


def _divided(learner: Learner) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in learner.modules() if isinstance(module, FSDPModule)]


def is_divided(value: Any) -> bool:
    return hasattr(value, "full_tensor")
