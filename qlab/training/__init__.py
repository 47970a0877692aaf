"""Training for low bits: fake quantization, learned scales, the loop, and back to packed codes.

    fake = prepare(story.model, "int3-channel", method="lsq")      # FakeQuantLinear layers
    train(fake, story_batches(story.tokenizer), TrainOptions(steps=200, distill=1.0),
          teacher=story.model)                                     # in place; returns the log
    small = convert(fake)                                          # QuantLinear, same outputs

Stable names:
    prepare(model, scheme, activations=None, method="ste", *, start="mse", schemes=None,
            observer=None, calibration=None, skip=("lm_head",)) -> model
    train(model, batches, options=None, *, teacher=None, checkpoint=None, checkpoint_every=50,
          evaluate=None, evaluate_every=0, stop_after=None, progress=False) -> list[Row]
        trains every parameter with ``requires_grad``, of any model that returns ``.logits``
    convert(model) -> model
    TrainOptions(steps, lr, range_lr, warmup, schedule, weight_decay, range_decay, betas,
                 clip_norm, distill, temperature, seed)
    story_batches(tokenizer, batch=8, length=256, seed=0, *, texts=None, world=0.0)
        -> a function of the step: int64 (batch, length)
    fake_quantize(x, scheme, scale=None, zero_point=None, *, clip=True) -> x̂ with a gradient
    StraightThrough.apply(x, x_hat, passes)   the value x_hat, the gradient of x (where passes)
    FakeQuantLinear(weight, bias, quantizer, inputs=None, name=""), fake_layers(model)
    task_loss(logits, ids), distillation_loss(logits, teacher_logits, temperature=1.0)
"""

from qlab.training.data import story_batches
from qlab.training.fake_quant import (
    Quantizer,
    StraightThrough,
    StraightThroughQuantizer,
    fake_quantize,
)
from qlab.training.learned_range import LearnedRange
from qlab.training.loop import Row, train, write_log
from qlab.training.losses import distillation_loss, task_loss
from qlab.training.lsq import LSQ, first_step_size, lsq_quantize
from qlab.training.modules import FakeQuantLinear, fake_layers
from qlab.training.options import TrainOptions
from qlab.training.pact import PACT, pact_quantize
from qlab.training.qat import METHODS, convert, prepare

__all__ = [
    "LSQ",
    "METHODS",
    "PACT",
    "FakeQuantLinear",
    "LearnedRange",
    "Quantizer",
    "Row",
    "StraightThrough",
    "StraightThroughQuantizer",
    "TrainOptions",
    "convert",
    "distillation_loss",
    "fake_layers",
    "fake_quantize",
    "first_step_size",
    "lsq_quantize",
    "pact_quantize",
    "prepare",
    "story_batches",
    "task_loss",
    "train",
    "write_log",
]
