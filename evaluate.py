"""Evaluate a model: [torchrun --nproc-per-node 8] evaluate.py --config NAME [checkpoint=PATH key=value ...]"""

from lavila.engine.command_line import parse, run


def main() -> None:
    config = parse(
        "Evaluates a checkpoint over temporal and spatial views; writes report.json and report.html to the run folder "
        "for the run's newest checkpoint, and to <run_dir>/evaluations/NAME/ for any other.",
        example="python evaluate.py --config quickstart checkpoint=runs/quickstart/checkpoints views.clips=4",
    )
    from lavila.engine.evaluator import evaluate  # after parsing, so that --help and config errors are quick

    run(evaluate, config)


if __name__ == "__main__":
    main()
