"""Run an extraction in child processes and kill each with SIGKILL after a random time, until as many as asked for died.

Usage: killer.py IMAGES FOLDER SEED KILLS STORE. A child that comes to its end before it is killed is no kill: then the
next begin another cache in FOLDER, and all of them end whole. Prints a JSON list: what each killed child left behind.
It forks from a process that has loaded torch, so that a child is soon at work.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import projection
import torch

from dlprobe.extraction import extract

torch.set_num_threads(1)


def leftovers(cache):
    recorded = {int(path.stem) for path in (cache / "records").glob("0*.json")}
    chunks = {int(path.name.split(".")[1]) for path in (cache / "features.zarr" / "embeddings").glob("c.*")}
    return {
        "scratch": len(list(cache.rglob(".dlprobe-scratch-*"))),
        "orphans": len(chunks - recorded),
        "recorded": len(recorded),
    }


def main(images, folder, seed, kills, store):
    rng = random.Random(seed)
    manifest = projection.write_images(images, projection.SIZES * 2)
    backbone = projection.Projection()
    backbone(backbone.matrix.new_zeros(1, 56, 56, 3).byte().numpy())  # torch starts up here, not in each child
    seen, caches = [], 1
    while True:
        cache = folder / f"cache-{caches}"
        begun, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            extract(
                manifest,
                backbone,
                cache,
                stride_px=40,
                block_windows=2,
                store=store,
                progress=lambda *_, pipe=tell: os.write(pipe, b"."),
            )
            os._exit(0)
        os.close(tell)
        if len(seen) < kills:
            for _ in range(len(seen) % 3):  # killed while it sets up, before its first record, and after it
                os.read(begun, 1)
            time.sleep(rng.uniform(0.0, 0.08))
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(begun)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            if len(seen) == kills:
                break
            caches += 1
        else:
            seen.append(leftovers(cache))
    sys.stdout.write(json.dumps(seen))


main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
