"""The values of a config that tasks use, as plain values: no task sees a config."""

from __future__ import annotations

from lavila.config.schema import ConfigError, RunConfig
from lavila.models.generation import GenerationConfig
from lavila.tasks import MarginOptions, NarrationOptions, TaskOptions, Temperature, TextOptions


def task_options(config: RunConfig) -> TaskOptions:
    """The values of a config that tasks use."""
    task, model, text, decoder = config.task, config.model, config.model.text, config.model.decoder
    return TaskOptions(
        heads=task.heads,
        head_weights=task.head_weights,
        label_smoothing=task.label_smoothing,
        dropout=model.dropout,
        gradient_checkpointing=model.gradient_checkpointing,
        text=TextOptions(
            kind="clip" if text.kind == "auto" else text.kind,
            width=text.width,
            depth=text.depth,
            heads=text.heads,
            context=text.context,
            vocabulary=text.vocabulary,
            init=text.init,
            batch_size=text.batch_size,
        ),
        embed_dim=model.embed_dim,
        projection=model.projection,
        temperature=Temperature(
            start=task.temperature,
            learned=task.learn_temperature,
            pseudo_start=task.pseudo_temperature,
            pseudo_learned=task.learn_pseudo_temperature,
        ),
        same_words=task.same_words,
        margin=MarginOptions(
            margin=task.margin,
            keep_diagonal=task.keep_diagonal,
            scaled=task.scale_margin,
            relevancy_above=task.relevancy_above,
        ),
        narration=NarrationOptions(
            width=decoder.width,
            depth=decoder.depth,
            heads=decoder.heads,
            cross_attention_every=decoder.cross_attention_every,
            gated=decoder.gated,
            dropout=decoder.dropout,
            queries=decoder.queries,
            context=decoder.context,
            vocabulary=decoder.vocabulary,
            init=decoder.init,
            average=task.caption_average,
            writes=generation_of(config),
            seed=config.seed,
        ),
        templates=task.templates,
        fusion=config.views.fusion,
        similarity=task.similarity,
        view_batch_size=config.views.view_batch_size,
    )


def generation_of(config: RunConfig) -> GenerationConfig | None:
    """How a narrator writes; None where it shall not. ConfigError for settings that exclude each other."""
    chosen = config.task.generation
    if not chosen.num_return_sequences:
        return None
    try:
        return GenerationConfig(
            num_return_sequences=chosen.num_return_sequences,
            max_length=min(chosen.max_length, config.model.decoder.context),
            temperature=chosen.temperature,
            top_k=chosen.top_k or None,
            top_p=chosen.top_p if chosen.top_p < 1 else None,
            num_beams=chosen.num_beams,
        )
    except ValueError as error:
        raise ConfigError(f"task.generation: {error}") from None
