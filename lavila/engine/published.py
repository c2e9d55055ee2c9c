"""The published scores of a published checkpoint, where an evaluation follows the published protocol."""

from __future__ import annotations

from pathlib import Path

from lavila.checkpoints.zoo import PROTOCOLS, ZOO, zoo_name
from lavila.config.schema import RunConfig


def published_scores(config: RunConfig, file: Path, *, dataset: str) -> dict[str, float]:
    """Name of a metric here -> published value; empty for other models, and for evaluations of another kind.

    file: of the evaluated model. The protocol is the dataset, the frames of a view, how they are chosen, the views,
    their fusion, and the similarity that clips are chosen by. Some were made in half precision; `views.precision` is
    free.
    """
    name = zoo_name(file)
    for score in ZOO[name].scores if name else ():
        protocol = PROTOCOLS.get((score.task, score.how))
        if protocol is None or score.task != dataset or score.frames != config.data.frames:
            continue
        views = config.views
        asked = (views.clips, views.crops, config.data.sampling)
        scored = protocol.fusion in ("", views.fusion) and protocol.similarity in ("", config.task.similarity)
        if scored and asked == (protocol.clips, protocol.crops, protocol.sampling):
            return {protocol.metrics[metric]: value for metric, value in score.values.items()}
    return {}
