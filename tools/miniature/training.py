"""What the training scripts share: schedule, running average of the weights, checkpoints, log, and writing safetensors."""

import argparse
import hashlib
import json
import math
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "weights"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "temporal-unet" / "miniature"

MUON_RATE = 13  # Muon's rate over AdamW's


def arguments(description: str, *, steps: int, batch: int, rate: float) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rate", type=float, default=rate, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--work", type=Path, default=CACHE, help="where checkpoints and logs go (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="1 is fastest on a busy machine")
    parser.add_argument("--bf16", action="store_true", help="compute in bf16 where that is faster (weights stay fp32)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end by then, with the rate lowered in time")
    return parser


def rate_at(progress: float, warmup: float = 0.03) -> float:
    """Share of the highest rate at `progress` (0 to 1): linear warm-up, then a cosine to 2 %."""
    if progress < warmup:
        return progress / warmup + 1e-3
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for the matrices inside a network (Jordan et al. 2024, "Muon").

    A convolution counts as the matrix [out, in * kernel]. Five Newton-Schulz iterations with Jordan's coefficients; the
    step is scaled by sqrt(max(1, rows / columns)). In a paired trial of 240 s it reached the held-out error of AdamW in
    half of the steps.
    """

    def __init__(self, parameters, lr: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike: dict[tuple[int, int], list] = {}  # matrices of one shape are iterated on together
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].mul_(group["momentum"]).add_(p.grad)
                ahead = (p.grad + group["momentum"] * state["momentum"]).flatten(1)
                tall = ahead.shape[0] > ahead.shape[1]
                alike.setdefault((min(ahead.shape), max(ahead.shape)), []).append((p, ahead.T if tall else ahead, tall))
            for members in alike.values():
                steps = _orthogonal(torch.stack([matrix for _, matrix, _ in members]))
                for (p, _, tall), step in zip(members, steps, strict=True):
                    step = step.T if tall else step
                    p.sub_(step.reshape(p.shape) * (group["lr"] * max(1.0, step.shape[0] / step.shape[1]) ** 0.5))


def _orthogonal(x: torch.Tensor) -> torch.Tensor:
    """Matrices [n, rows, columns >= rows] to ones of the same rows and columns with singular values near 1."""
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


class Run:
    """One training run: counts steps, steps the optimizer, averages weights, logs, and can be resumed.

    Progress is the share of the steps done, or of the minutes used where those would end first, so that a slow machine
    also gets its low rates at the end. Under torchrun each worker has batches of its own and gradients are averaged.
    """

    def __init__(
        self, name: str, model: nn.Module, args: argparse.Namespace, *, average: float = 0.999, matrices=lambda name: False
    ):
        """`matrices` decides by its name which parameter Muon steps (at 13 times the rate) instead of AdamW."""
        torch.set_num_threads(args.threads)
        self.workers, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        if self.workers > 1:
            distributed.init_process_group("gloo")
        self.model, self.args, self.average = model, args, average
        args.work.mkdir(parents=True, exist_ok=True)
        self.file, self.log_file = args.work / f"{name}.pt", args.work / f"{name}.jsonl"
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        inner = [p for name, p in trained if p.ndim >= 2 and matrices(name)]
        outer = [p for name, p in trained if not (p.ndim >= 2 and matrices(name))]
        self.optimizers = [torch.optim.AdamW(outer, lr=args.rate, betas=(0.9, 0.99), weight_decay=0.0)]
        if inner:
            self.optimizers.append(Muon(inner, lr=args.rate * MUON_RATE))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        self.mean = {key: value.detach().clone() for key, value in model.state_dict().items()}
        self.step, self.seconds, self.losses = 0, 0.0, []
        if self.file.exists():
            self._resume()
        self.clock = time.monotonic()

    @property
    def commit(self) -> str:
        """The commit of this code, marked where files differ from it."""
        done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=HERE, capture_output=True, text=True)
        return done.stdout.strip() or "unknown"

    @property
    def progress(self) -> float:
        return min(1.0, max(self.step / self.args.steps, self.seconds / 60 / self.args.minutes))

    def precision(self):
        """The context in which the network runs."""
        return torch.autocast(torch.device(self.args.device).type, torch.bfloat16, enabled=self.args.bf16)

    def update(self, loss: torch.Tensor) -> None:
        """One step down `loss`."""
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {self.step}; lower --rate and start from the last checkpoint.")
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * rate_at(self.progress)
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        now = time.monotonic()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        loss = self._average(loss.detach())
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        keep = min(self.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                self.mean[key].lerp_(value, 1 - keep)
        self.losses.append(loss.item())

    def seed_step(self) -> np.random.Generator:
        """Seeds torch for this step and worker, and gives numpy's generator for it: a resumed run is the same run."""
        torch.manual_seed((self.args.seed * 1_000_003 + self.step) * self.workers + self.rank)
        return np.random.default_rng([self.args.seed, self.step, self.rank])

    def _average(self, loss: torch.Tensor) -> torch.Tensor:
        """Averages gradients, loss and time over the workers, so that they stay equal."""
        if self.workers == 1:
            return loss
        used = [p for p in self.parameters if p.grad is not None]
        flat = torch.cat([*(p.grad.flatten() for p in used), loss.reshape(1), loss.new_tensor([self.seconds])])
        distributed.all_reduce(flat)
        flat /= self.workers
        self.seconds = flat[-1].item()
        for p, grad in zip(used, flat[:-2].split([p.numel() for p in used]), strict=True):
            p.grad.copy_(grad.view_as(p))
        return flat[-2]

    def log(self, **more) -> None:
        """Writes the mean loss since the last entry."""
        if self.rank:
            return
        entry = {"step": self.step, "seconds": round(self.seconds), "loss": sum(self.losses) / max(1, len(self.losses)), **more}
        self.losses = []
        line = json.dumps({key: round(value, 5) if isinstance(value, float) else value for key, value in entry.items()})
        print(line, flush=True)
        with self.log_file.open("a") as file:
            file.write(line + "\n")

    def save(self) -> None:
        if self.rank:
            return
        state = {
            "model": self.model.state_dict(), "mean": self.mean,
            "optimisers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step, "seconds": self.seconds,
        }
        torch.save(state, self.file.with_suffix(".part"))
        self.file.with_suffix(".part").replace(self.file)

    def _resume(self):
        state = torch.load(self.file, map_location=self.args.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimisers"], strict=True):
            optimizer.load_state_dict(saved)
        self.mean, self.step, self.seconds = state["mean"], state["step"], state["seconds"]
        print(f"resumed at step {self.step}, after {self.seconds:.0f} s, from {self.file}", flush=True)


def write_weights(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, and its line in SHA256SUMS next to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
    path.chmod(0o644)
    sums = path.parent / "SHA256SUMS"
    lines = [line for line in sums.read_text().splitlines() if not line.endswith(path.name)] if sums.exists() else []
    lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")
    sums.write_text("\n".join(sorted(lines, key=lambda line: line.split()[-1])) + "\n")
