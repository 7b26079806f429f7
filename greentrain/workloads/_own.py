"""The ten lines that a user's own model takes, as errors show them; a test runs them."""

__all__ = ["BRING_YOUR_OWN"]

BRING_YOUR_OWN = """\
Or bring your own as --model path/to/my_net.py:workload, with in that file:
    import torch
    from torch import nn
    from greentrain.workloads.families import from_sequential
    from greentrain.workloads.workload import Workload
    net = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    workload = Workload(
        name="my-net", description="my own net", dataset="digits", build=lambda seed: from_sequential(net, seed),
        example=lambda n: ((torch.zeros(n, 1, 8, 8),), torch.zeros(n, dtype=torch.int64)),
        loss=nn.functional.cross_entropy, optimizer="adam", learning_rate=1e-3,
        batch=64, micro_batches=(8, 16), epochs=10, target_accuracy=None)"""
