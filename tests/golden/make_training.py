# SPDX-License-Identifier: Apache-2.0
"""data/training.json: losses, optimiser trajectories, clipping and schedules as torch and transformers compute them,
in double precision."""

import json
import math
import pathlib

import torch
from transformers import optimization

torch.set_default_dtype(torch.float64)
COLUMNS, ROWS, STEPS, SIZE = 7, 5, 10, 6


def wave(count, phase, scale=1.0):
    """Numbers without a pattern an error could hide behind; the same everywhere."""
    return [scale * math.sin(phase + 1.7 * k + 0.3 * k * k) for k in range(count)]


def cross_entropy(smoothing, z_loss):
    logits = torch.tensor(wave(ROWS * COLUMNS, 0.4, 3.0)).reshape(ROWS, COLUMNS).requires_grad_()
    labels = torch.tensor([(3 * n + 1) % COLUMNS for n in range(ROWS)])
    weights = torch.tensor([0.2, 0.5, 1.0, 0.0, 2.0])
    rows = torch.nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    rows = rows + z_loss * torch.logsumexp(logits, dim=-1) ** 2
    (weights * rows).sum().backward()
    return {
        "label_smoothing": smoothing,
        "z_loss": z_loss,
        "logits": logits.tolist(),
        "labels": labels.tolist(),
        "weights": weights.tolist(),
        "nll": torch.nn.functional.cross_entropy(logits, labels, reduction="none").tolist(),
        "losses": rows.tolist(),
        "correct": int((logits.argmax(-1) == labels).sum()),
        "gradient": logits.grad.tolist(),
    }


def squared_error():
    outputs = torch.tensor(wave(ROWS * 2, 0.9)).reshape(ROWS, 2).requires_grad_()
    targets = torch.tensor(wave(ROWS * 2, 2.1)).reshape(ROWS, 2)
    loss = torch.nn.functional.mse_loss(outputs, targets)
    loss.backward()
    return {"outputs": outputs.tolist(), "targets": targets.tolist(), "loss": loss.item(), "gradient": outputs.grad.tolist()}


def trajectory(make, rates, clip=0.0):
    """STEPS steps of an optimiser on two groups: elements 0 to 3 with its weight decay, the others without."""
    start = wave(SIZE, 0.2)
    decayed, plain = torch.nn.Parameter(torch.tensor(start[:4])), torch.nn.Parameter(torch.tensor(start[4:]))
    optimizer = make(decayed, plain)
    gradients, after, norms = [], [], []
    for step in range(STEPS):
        gradient = wave(SIZE, 5.0 + step, 0.5 + 0.2 * step)
        gradients.append(gradient)
        decayed.grad, plain.grad = torch.tensor(gradient[:4]), torch.tensor(gradient[4:])
        if clip:
            norms.append(torch.nn.utils.clip_grad_norm_([decayed, plain], clip).item())
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.step()
        after.append(decayed.tolist() + plain.tolist())
    return {"start": start, "rates": rates, "gradients": gradients, "after": after, "clip": clip, "norms": norms}


def adamw(decay, **options):
    return lambda a, b: torch.optim.AdamW(
        [{"params": [a], "weight_decay": decay}, {"params": [b], "weight_decay": 0.0}], **options
    )


def sgd(decay, **options):
    return lambda a, b: torch.optim.SGD(
        [{"params": [a], "weight_decay": decay}, {"params": [b], "weight_decay": 0.0}], lr=1, **options
    )


def schedule(kind, make, steps=24, **options):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.25)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return {"kind": kind, "peak": 0.25, "rates": rates, **options}


def schedules():
    result = []
    for warmup in (0, 5):
        both = {"num_warmup_steps": warmup}
        timed = {**both, "num_training_steps": 20}
        names = {"warmup": warmup, "total": 20}
        result += [
            schedule("constant", lambda o: optimization.get_constant_schedule_with_warmup(o, **both), **names),
            schedule("linear", lambda o: optimization.get_linear_schedule_with_warmup(o, **timed), **names),
            schedule("cosine", lambda o: optimization.get_cosine_schedule_with_warmup(o, **timed), **names),
            schedule("polynomial", lambda o: optimization.get_polynomial_decay_schedule_with_warmup(o, **timed), **names),
            schedule(
                "polynomial",
                lambda o: optimization.get_polynomial_decay_schedule_with_warmup(o, **timed, lr_end=0.01, power=2.0),
                **names, end=0.01, power=2.0,
            ),
        ]
    return result


def main():
    constant = [0.01] * STEPS
    falling = [0.02 * (STEPS - step) / STEPS for step in range(STEPS)]
    content = {
        "cross_entropy": [cross_entropy(s, z) for s, z in ((0, 0), (0.1, 0), (0, 1e-3), (0.2, 1e-2))],
        "squared_error": squared_error(),
        "adamw": [
            trajectory(adamw(0.0), constant),
            trajectory(adamw(0.1, betas=(0.8, 0.95), eps=1e-6), falling, clip=0.7),
        ],
        "sgd": [
            trajectory(sgd(0.0), constant),
            trajectory(sgd(0.1, momentum=0.9), falling),
            trajectory(sgd(0.0, momentum=0.9, nesterov=True), constant),
        ],
        "schedules": schedules(),
    }
    path = pathlib.Path(__file__).parent / "data" / "training.json"
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
