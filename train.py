"""Train a model: [torchrun --nproc-per-node 8] train.py --config NAME [key=value ...]"""

if __name__ == "__main__":
    from lavila.interrupts import end_early, run_main

    end_early(status=2)

from lavila.config.schema import RunConfig
from lavila.engine.command_line import parse, run


def main() -> None:
    config = parse(
        "Trains a model on a shard set; continues from the run's newest checkpoint if there is one.",
        example="torchrun --nproc-per-node 8 train.py --config ek100_cls_tsf_l optim.epochs=50 seed=1",
    )

    def work(config: RunConfig) -> None:
        from lavila.engine.dry_run import check_training  # after parsing, so that --help and config errors are quick
        from lavila.engine.trainer import train

        (check_training if config.dry_run else train)(config)

    run(work, config)


if __name__ == "__main__":
    run_main(main, status=2)
