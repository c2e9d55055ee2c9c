"""What test_captioner.py runs in another process, where MKL has not started: texts of clips, together and alone.

    python tests/models/any_batch.py [bfloat16]

Sizes are GPT-2's but for the depths: in small products the order of sums is the same anyway. Prints how many texts
there are, and whether all bits of likelihoods and tokens are the same.
"""

from __future__ import annotations

import sys

from lavila.engine.command_line import compute_the_same_bits

compute_the_same_bits()

import torch  # noqa: E402

from lavila.models.gated_gpt2 import GatedGpt2Config  # noqa: E402
from lavila.models.generation import Narrations, clip_generators  # noqa: E402
from lavila.models.narrator import Narrator  # noqa: E402
from lavila.models.timesformer import TimeSformer, TimeSformerConfig  # noqa: E402

CLIPS = 3  # together; two are too few for the bfloat16 product of the tower to change


def narrator() -> Narrator:
    """With open gates and random weights, some of whose tokens are much likelier than others."""
    torch.manual_seed(0)
    tower = TimeSformer(TimeSformerConfig(num_frames=4, depth=1))
    model = Narrator(tower, GatedGpt2Config(depth=1, vocab_size=9000, end_token=8999)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "alpha" in name:
                parameter.fill_(0.5)
            elif name.endswith("ln_f.weight"):
                parameter.fill_(8.0)
    return model


def texts(model: Narrator, video: torch.Tensor, first: int) -> Narrations:
    generators = clip_generators(0, [str(first + place) for place in range(len(video))])
    return model.generate(video, generator=generators, max_length=9, top_p=0.95, temperature=0.7)


def main(kind: torch.dtype) -> None:
    model = narrator().to(kind)
    video = torch.randn(CLIPS, 3, 4, 224, 224).to(kind)
    together = texts(model, video, 0)
    alone = [texts(model, video[[place]], place) for place in range(CLIPS)]
    same = torch.equal(together.nll, torch.cat([one.nll for one in alone])) and all(
        together.tokens[place].tolist() == one.tokens[0].tolist() for place, one in enumerate(alone)
    )
    print(len(alone), "same" if same else "different")


if __name__ == "__main__":
    main(torch.bfloat16 if sys.argv[1:] == ["bfloat16"] else torch.float32)
