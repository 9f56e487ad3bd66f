"""How long processes need to add up gradients, each in one flat tensor; called by `scaling`.

    python -m torch.distributed.run --standalone --nproc_per_node=2 \
        -m benchmarks.all_reduce cpu 1000000 175000
"""

from __future__ import annotations

import json
import os
import statistics
import sys

import torch
import torch.distributed as dist

from benchmarks.subject import now


def main(kind: str, sizes: list[int]) -> float:
    """-> seconds for one all-reduce of each size; the median of twenty rounds."""
    device = torch.device("cpu")
    if kind == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        gradients = [torch.zeros(size, device=device) for size in sizes]
        seconds = []
        for _ in range(23):
            dist.barrier()
            start = now(device)
            for gradient in gradients:
                dist.all_reduce(gradient)
            seconds.append(now(device) - start)
        if dist.get_rank() == 0:
            print(json.dumps({"seconds": statistics.median(seconds[3:])}), flush=True)
        return statistics.median(seconds[3:])
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], [int(size) for size in sys.argv[2:]])
