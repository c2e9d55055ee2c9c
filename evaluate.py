"""Evaluate a model: [torchrun --nproc-per-node 8] evaluate.py --config NAME [checkpoint=PATH key=value ...]

Score saved predictions again: evaluate.py --from runs/NAME/predictions
"""

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early(status=2)

from lavila.config.schema import RunConfig
from lavila.engine.command_line import parse, run


def main() -> None:
    config = parse(
        "Evaluates a checkpoint over temporal and spatial views; writes report.json and report.html to the run folder "
        "for the run's newest checkpoint, and to <run_dir>/evaluations/NAME/ for any other. Predictions are kept there "
        "in the folder `predictions`; --from scores such a folder again, and writes the report beside it anew.",
        example="python evaluate.py --config quickstart checkpoint=runs/quickstart/checkpoints views.clips=4",
        scores_again=True,
    )

    def work(config: RunConfig) -> None:
        from lavila.engine.dry_run import check_evaluation  # after parsing, so that --help and config errors are quick
        from lavila.engine.evaluator import evaluate

        (check_evaluation if config.dry_run else evaluate)(config)

    run(work, config)


if __name__ == "__main__":
    run_main(main, status=2)
