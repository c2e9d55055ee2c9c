"""Where DALI is not installed, everything but its own decoders works."""

from __future__ import annotations

import subprocess
import sys

from lavila.shards.reader import ShardSet

CODE = """
import importlib, pkgutil, sys

class NoDali:
    def find_spec(self, name, path=None, target=None):
        if name == "nvidia.dali" or name.startswith("nvidia.dali."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoDali())

import lavila
from lavila.data.loader import ClipLoader, Pictures, clip_sizes
from lavila.inspection.videos import RecordedShape, decodes
from lavila.plan.crops import ViewChoice
from lavila.plan.frames import FrameChoice
from lavila.plan.plans import Ranks, ViewPlan
from lavila.shards.reader import open_shard_set

for module in pkgutil.walk_packages(lavila.__path__, "lavila."):
    if not module.name.startswith(("lavila.data.dali_pipelines.", "lavila.doctor.")):
        importlib.import_module(module.name)

shards = open_shard_set(sys.argv[1])
views, frames = ViewChoice(size=32), FrameChoice(frames=4)
plan = ViewPlan(clip_sizes(shards), frames=frames, views=views, batch_size=4, ranks=Ranks())
pictures = Pictures(mean=(0, 0, 0), std=(255, 255, 255))
print(sum(len(batch) for batch in ClipLoader(shards, plan, pictures=pictures)))
row = shards.clips.slice(0, 1).to_pylist()[0]
stored = RecordedShape(frames=row["num_frames"], height=row["height"], width=row["width"])
print(decodes(shards.read_video(0), stored))
loader = ClipLoader(shards, plan, pictures=pictures, decoder="dali_cpu")
try:
    next(iter(loader))
except ModuleNotFoundError as error:
    print(error.name)
"""


def test_the_host_path_runs_without_dali(vp9_shards: ShardSet) -> None:
    command = [sys.executable, "-c", CODE, str(vp9_shards.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    clips, problem, missing = done.stdout.split("\n")[:3]
    assert (clips, problem) == (str(len(vp9_shards)), "None")
    assert missing.startswith("nvidia.dali")
