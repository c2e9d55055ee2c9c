"""torchrun --max-restarts after a worker was killed: the run resumes, and ends as an undisturbed one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lavila.report.files import read_metrics
from lavila.shards.reader import ShardSet
from tests.engine.test_runs import ENVIRONMENT, ROOT, config_file, same, weights

KILLED_ONCE = """
import os, signal, sys
from pathlib import Path
from lavila.engine.command_line import compute_the_same_bits
compute_the_same_bits()  # as train.py does
from lavila.engine import trainer
from lavila.config.load import load_config
done = trainer.Trainer._pass
def dying(self, *arguments, **named):
    mark = Path(sys.argv[1]).with_suffix(".killed")
    if os.environ["RANK"] == "1" and self.state.progress.updates == 5 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return done(self, *arguments, **named)
trainer.Trainer._pass = dying
trainer.train(load_config(sys.argv[1]))
"""


def test_a_killed_worker_is_started_again_and_changes_nothing(
    tmp_path: Path, vp9_shards: ShardSet, undisturbed: Path
) -> None:
    path = config_file(tmp_path, vp9_shards, optim={"epochs": 15}, checkpoint_every_steps=2, keep_checkpoints=1)
    script = tmp_path / "killed_once.py"
    script.write_text(KILLED_ONCE)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "--max-restarts=1", str(script), str(path)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0 and path.with_suffix(".killed").exists(), done.stdout + done.stderr
    lines = [read_metrics(run / "metrics.jsonl") for run in (tmp_path / "run", undisturbed)]
    losses = [[(line["step"], line["loss"]) for line in found] for found in lines]
    assert losses[0] == losses[1] and [step for step, _ in losses[0]] == list(range(1, 46))
    assert same(weights(tmp_path / "run"), weights(undisturbed))
