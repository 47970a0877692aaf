"""The same training on several processes, devices or machines, under ``accelerate``.

    accelerate launch --cpu --num_processes 2 -m qlab.training.processes \\
        --scheme int2-asym-channel --steps 40 --distill 1 --out story-int2

Each process has a copy of the model and takes its share of the rows of each step; the gradients are
averaged before the step. With equal shares the mean of the means is the mean over all rows, so the
result is that of one process up to the rounding of the sums.

Where one device cannot hold the weights with their gradients and AdamW's state, DeepSpeed shards
what each process would hold a copy of (ZeRO): stage 1 the optimizer's state, stage 2 the gradients
too, stage 3 the weights too. The command is the same; the configuration files lie beside this one:

    accelerate launch --use_deepspeed --num_processes 8 \\
        --deepspeed_config_file qlab/training/deepspeed_zero3.json -m qlab.training.processes ...

In stage 3 DeepSpeed gathers the parameters of a layer before its forward and backward pass. A
FakeQuantLinear has its weight whole then, so its scales are those of the whole weight. But autograd
keeps Ŵ, which is not sharded, from the forward to the backward pass: checkpoint activations where
that is too much.

Source: Rajbhandari et al. 2020, arXiv 1910.02054, section 5 (ZeRO's stages).

Chapter: Quantization-aware training.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from qlab.errors import MissingExtraError, QlabError
from qlab.training.data import story_batches
from qlab.training.loop import Batches, losses_of
from qlab.training.options import TrainOptions, build_optimizer, rate
from qlab.training.qat import convert, prepare


def train_processes(
    model: nn.Module,
    batches: Batches,
    options: TrainOptions,
    teacher: nn.Module | None = None,
    *,
    cpu: bool = False,
    look: Callable[[Any, Any], None] | None = None,
) -> tuple[Any, list[float]]:
    """Train ``model`` on all processes of this launch.

    Args:
        model, batches, options, teacher: as in ``train``; the same on each process. The number of
            rows of a batch is a multiple of the number of processes.
        cpu: stay on the CPU where there is a GPU.
        look: called with the wrapped model and optimizer after the last step, for measuring.

    Returns: the trained model, unwrapped, the same on each process; the loss of each step, of this
        process's rows.

    Raises: QlabError for rows that cannot be shared equally, and as ``train`` does.

    Chapter: Quantization-aware training.
    """
    try:
        from accelerate import Accelerator
    except ImportError:
        raise MissingExtraError("accelerate", "test", "training on several processes") from None

    if cpu and os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise QlabError(
            "accelerate leaves DeepSpeed out when it is told to stay on the CPU: without --cpu and "
            "with DS_ACCELERATOR=cpu in the environment, DeepSpeed runs there"
        )
    accelerator = Accelerator(cpu=cpu)
    optimizer = build_optimizer(model, options)
    highest = [float(group["lr"]) for group in optimizer.param_groups]
    whole = model
    if (plugin := accelerator.state.deepspeed_plugin) is not None:
        config = plugin.deepspeed_config
        if config.get("gradient_clipping") != options.clip_norm:
            raise QlabError(
                f"gradient_clipping {config.get('gradient_clipping')} in the DeepSpeed "
                f"configuration and clip_norm {options.clip_norm} in the options: make them equal"
            )
        config["train_micro_batch_size_per_gpu"] = batches(0).shape[0] // accelerator.num_processes
        if plugin.zero_stage == 3:
            whole = copy.deepcopy(model)  # DeepSpeed leaves empty parameters in the model itself
    model, optimizer = accelerator.prepare(model, optimizer)
    if teacher is not None:
        teacher = teacher.to(accelerator.device)
    rank, count = accelerator.process_index, accelerator.num_processes
    losses = []
    model.train()
    for step in range(options.steps):
        for group, lr in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = lr * rate(step, options)
        rows = batches(step)
        if rows.shape[0] % count:
            raise QlabError(
                f"{rows.shape[0]} rows a step on {count} processes: take a multiple of {count}"
            )
        ids = rows[rank::count].to(accelerator.device)
        loss, _, _ = losses_of(model, ids, options, teacher, step)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), options.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if look is not None:
        look(model, optimizer)
    trained = accelerator.unwrap_model(model)
    if whole is not trained and plugin is not None and plugin.zero_stage == 3:
        gather(trained, whole)
        trained = whole
    return trained.eval(), losses


def gather(sharded: nn.Module, whole: nn.Module) -> None:
    """Copy the weights that ZeRO 3 has spread over the processes into a model that is whole.

    For models that fit into the memory of each process. For larger ones save the shards
    (``model.save_checkpoint``) and let DeepSpeed's ``zero_to_fp32.py`` put them together.
    """
    import deepspeed

    for p, q in zip(sharded.parameters(), whole.parameters(), strict=True):
        with deepspeed.zero.GatheredParameters([p]), torch.no_grad():
            q.copy_(p)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command that ``accelerate launch`` starts on each process."""
    parser = argparse.ArgumentParser(description="Quantization-aware fine-tuning under accelerate.")
    parser.add_argument("--model", default="story", help="a model folder, or story")
    parser.add_argument("--scheme", required=True, help="such as int2-asym-channel")
    parser.add_argument("--method", default="ste", help="ste, lsq, pact or range")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8, help="rows a step, over all processes")
    parser.add_argument("--length", type=int, default=128, help="tokens a row")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--distill", type=float, default=1.0, help="the teacher's share, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU")
    parser.add_argument("--out", required=True, help="folder for the quantized model")
    chosen = parser.parse_args(arguments)

    from qlab import story
    from qlab.export import save_folder

    teller = story.load(chosen.model)
    options = TrainOptions(
        steps=chosen.steps, lr=chosen.lr, distill=chosen.distill, seed=chosen.seed
    )
    fake = prepare(teller.model, chosen.scheme, method=chosen.method)
    batches = story_batches(teller.tokenizer, chosen.batch, chosen.length, chosen.seed)
    teacher = teller.model if chosen.distill else None
    fake, losses = train_processes(fake, batches, options, teacher, cpu=chosen.cpu)
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    if first:
        save_folder(convert(fake), teller.tokenizer, chosen.out, method="qat", overwrite=True)
        print(f"{chosen.out}: {chosen.scheme}, last loss {losses[-1]:.4f}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
