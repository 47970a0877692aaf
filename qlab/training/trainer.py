"""The same training through transformers' Trainer.

Chapter: Quantization-aware training.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qlab.errors import MissingExtraError
from qlab.training.loop import Batches, losses_of
from qlab.training.options import TrainOptions, build_optimizer, build_schedule


def to_trainer(
    model: nn.Module,
    batches: Batches,
    options: TrainOptions | None = None,
    *,
    teacher: nn.Module | None = None,
    folder: str | Path | None = None,
) -> Any:
    """A ``transformers.Trainer`` whose ``train()`` takes the very steps of ``qlab.training.train``.

    The loss, the optimizer and the schedule are those of the plain loop, and the rows come in its
    order, so the weights end up equal, bit for bit, on the same device. (Models with dropout
    differ: here each step draws from the Trainer's own state.)

    Args:
        model, batches, options, teacher: as in ``train``.
        folder: for what the Trainer writes, which is nothing with these arguments, though it
            creates the folder; None: one of the system's for temporary files.

    Raises: MissingExtraError without ``accelerate``; ``train()`` raises as ``qlab.training.train``.

    Chapter: Quantization-aware training.
    """
    logging.disable(logging.WARNING)  # what optional parts of transformers say about themselves
    try:
        import accelerate  # noqa: F401
        from transformers import PrinterCallback, Trainer, TrainingArguments
    except ImportError:
        raise MissingExtraError("accelerate", "test", "transformers' Trainer") from None
    finally:
        logging.disable(logging.NOTSET)

    options = options or TrainOptions()
    chosen = options

    class Steps(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        """Entry i is the batch of step i."""

        def __len__(self) -> int:
            return chosen.steps

        def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
            return {"input_ids": batches(step)}

    class QatTrainer(Trainer):  # type: ignore[misc]
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
        ) -> Any:
            loss, _, _ = losses_of(
                model, inputs["input_ids"], chosen, teacher, self.state.global_step
            )
            return loss

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(dataset or self.train_dataset)

    optimizer = build_optimizer(model, options)
    trainer = QatTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder or Path(tempfile.gettempdir()) / "qlab-trainer"),
            max_steps=options.steps,
            per_device_train_batch_size=1,  # an entry of Steps is a batch already
            max_grad_norm=options.clip_norm,
            seed=options.seed,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=next(model.parameters()).device.type == "cpu",
        ),
        train_dataset=Steps(),
        data_collator=lambda entries: entries[0],
        optimizers=(optimizer, build_schedule(optimizer, options)),
    )
    trainer.remove_callback(PrinterCallback)  # the log is in trainer.state.log_history
    return trainer
