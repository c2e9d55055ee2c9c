"""The table of docs/MODEL_ZOO.md: every published result with the command that repeats it here."""

from __future__ import annotations

from lavila.models.zoo import ZOO, Score, ZooModel

# (task, how it was scored) -> the config to evaluate with; what is not here has no task or recipe yet.
RECIPES = {("ek100_cls", "fine-tuned"): "ek100_cls_tsf_l"}
NOT_BUILT = "task not built yet"
EK100_HEADS = 3  # of the recipe; a classifier with one predicts the action


def markdown() -> str:
    """One line for each published result, and for each checkpoint without one."""
    lines = [
        "| checkpoint | frames, pixels | published result | here |",
        "| --- | --- | --- | --- |",
    ]
    for model in ZOO.values():
        facts = f"{model.frames}, {model.image_size}"
        lines += [
            f"| `{model.name}` | {facts} | {_result(score)} | {_command(model, score)} |" for score in model.scores
        ]
        if not model.scores:
            use = f'`load_model("{model.name}")`'
            lines.append(f"| `{model.name}` | {facts} | none; {model.note} | {use} |")
    return "\n".join(lines)


def _result(score: Score) -> str:
    values = ", ".join(f"{metric} {value}" for metric, value in score.values.items())
    return f"{score.task}, {score.how}, {score.frames} frames: {values}"


def _command(model: ZooModel, score: Score) -> str:
    recipe = RECIPES.get((score.task, score.how))
    if recipe is None:
        return f'{NOT_BUILT}; `load_model("{model.name}", num_frames={score.frames})`'
    one_head = len(model.num_classes) != EK100_HEADS
    heads = " 'task.heads=[action]'" if one_head else ""
    told = " (the action alone: verb and noun are sums over actions, not built yet)" if one_head else ""
    return f"`torchrun --nproc-per-node 8 evaluate.py --config {recipe} checkpoint={model.name}{heads}`{told}"
