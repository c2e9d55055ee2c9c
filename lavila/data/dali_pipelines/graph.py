"""The one graph that turns encoded clips into normalised views, for training and evaluation, on the CPU and on a GPU.

    bytes --decode distinct frames--> [U,H,W,3] --cut window--> --resize (float)--> --gather K x T--> --crop S,
    mirror, normalise--> [K,S,T,3,size,size]

DALI decides nothing. Every number that differs from clip to clip is an input, made by `lavila.plan.plans`. Each
distinct frame is decoded and resized once, for any number of views. Training has one temporal clip, whose window is cut
before the resize, and one crop, which is the whole picture.

In memory frames come before channels, as the patch embedding reads them. The loader shows the tensor as
[B, V, C, T, H, W] without a copy.
"""

from __future__ import annotations

from typing import Any

from nvidia.dali import fn, types
from nvidia.dali.pipeline import Pipeline

from lavila.data.dali_pipelines.sources import ClipArguments, external_inputs
from lavila.data.pictures import DecoderName, Execution, PictureSpec


def build_pipeline(source: Any, spec: PictureSpec, execution: Execution, *, ahead: bool = True) -> Pipeline:
    """A pipeline that pulls batches from `source` (see `sources.external_inputs`), constructed but not yet built.

    It pulls before `run` asks, unless `ahead` is False.

    `device_id=None` keeps everything on the CPU. With a number, nvdec decodes on that GPU. The other decoders decode on
    the CPU and copy the frames to the GPU, so that one augment graph serves all. Its output is
    [B, K, S, T, 3, size, size], float32 or float16.
    """
    decoder, device_id = execution.decoder, execution.device_id
    if decoder == "nvdec" and device_id is None:
        raise ValueError("data.decoder=nvdec needs a GPU; use data.decoder=auto, dali_cpu or host on the CPU")
    pipeline = Pipeline(
        batch_size=execution.batch_size,
        num_threads=execution.threads,
        device_id=device_id,
        prefetch_queue_depth=execution.prefetch,
        exec_pipelined=ahead,
    )
    with pipeline:
        payload, arguments = external_inputs(source, spec, decoded=decoder == "host")
        frames = decode(payload, arguments, decoder=decoder)
        if device_id is not None:
            frames = frames.gpu()
        pipeline.set_outputs(augment(frames, arguments, spec))
    return pipeline


def decode(payload: Any, arguments: ClipArguments, *, decoder: DecoderName) -> Any:
    """The distinct frames of each clip, [U, H, W, 3] uint8 RGB. An index beyond the clip is an error."""
    if decoder == "host":
        return payload
    device = "mixed" if decoder == "nvdec" else "cpu"
    return fn.decoders.video(payload, frames=arguments.distinct, device=device, pad_mode="none")


def augment(frames: Any, arguments: ClipArguments, spec: PictureSpec) -> Any:
    """[U, H, W, 3] uint8 -> [K, S, T, 3, size, size] normalised. Runs on the device that `frames` lie on."""
    clips, crops = spec.view_grid
    if spec.cuts_window:
        # The window is cut first. A resize of a region of interest would also read pixels outside the window.
        frames = fn.slice(frames, start=arguments.window_start, shape=arguments.window_shape, axes=[1, 2])
    # The output is float, since rounding to uint8 before normalisation would cost up to half a level.
    frames = fn.resize(
        frames, size=arguments.resized, interp_type=types.INTERP_LINEAR, antialias=spec.antialias, dtype=types.FLOAT
    )
    if spec.pads_black:
        frames = fn.pad(frames, axes=[0], shape=arguments.padded_frames, fill_value=0)
    gathered = fn.sequence_rearrange(frames, new_order=arguments.order)
    pictures = [_normalised_crop(gathered, arguments, spec, crop) for crop in range(crops)]
    if crops == 1:  # stacking would copy it
        return fn.reshape(pictures[0], shape=[clips, 1, spec.frames, 3, spec.size, spec.size], layout="")
    shape = [clips, spec.frames, 3, spec.size, spec.size]
    return fn.stack(*[fn.reshape(picture, shape=shape, layout="") for picture in pictures], axis=1)


def _normalised_crop(frames: Any, arguments: ClipArguments, spec: PictureSpec, crop: int) -> Any:
    """One square crop of every frame, [K*T, 3, size, size]."""
    return fn.crop_mirror_normalize(
        frames,
        crop=(spec.size, spec.size),
        crop_pos_y=arguments.crop_y[crop],
        crop_pos_x=arguments.crop_x[crop],
        mirror=arguments.flip,
        mean=list(spec.mean),
        std=list(spec.std),
        dtype=types.FLOAT16 if spec.half else types.FLOAT,
        output_layout="FCHW",
    )
