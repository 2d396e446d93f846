"""Variational autoencoders: training against PyTorch, and 16 seeds vmapped against 16 runs one after the other.

Training: 784-400-20 with a Bernoulli likelihood, batches of 128, Adam at 1e-3, float32; the same starting weights, the
same data, the same number of updates. The digits of scikit-learn, enlarged to 28 x 28, moved about and binarised by
chance stand for MNIST. jaxem scores its ELBO on all data before and after, PyTorch does not; so the rate of training is
that of the passes between a short run and a long one, and whole long runs stand beside it. PyTorch is eager, with all
data on the device and batches by a permutation, which is faster than a DataLoader; "fused" is its fused Adam. Both are
scored by the same function on the same held-out rows, over a few seeds, whose standard error is the noise.

Seeds: 64-256-16 with Binomial(16) on the digits themselves.

    python examples/benchmarks/vae.py --sizes full
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import _timing
import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from jaxem.likelihoods import Binomial
from jaxem.networks import mlp

PEERS = {"PyTorch": ("torch", "torch")}
PIXELS, HIDDEN, LATENT, BATCH, RATE = 784, 400, 20, 128, 1e-3
NEVER = jaxem.Stop(atol=-np.inf)
# Rows, passes of a short and a long run, seeds of the comparison of ELBOs; rows, passes, seeds side by side.
TRAINING = {"toy": (512, 1, 2, 2), "small": (20_480, 1, 3, 4), "full": (20_480, 2, 10, 4)}
SEEDS = {"toy": (256, 2, 2), "small": (1_536, 20, 16), "full": (1_536, 100, 16)}


def enlarged_digits(num: int, seed: int) -> np.ndarray:
    """(num, 784) of 0 and 1."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    images = load_digits().images / 16
    images = images[rng.integers(0, len(images), num)].repeat(3, 1).repeat(3, 2)  # 24 x 24
    out = np.zeros((num, 28, 28))
    for i, (row, column) in enumerate(rng.integers(0, 5, (num, 2))):
        out[i, row : row + 24, column : column + 24] = images[i]
    return (rng.random(out.shape) < out).reshape(num, PIXELS).astype(np.float32)


def torch_training(params: Any, x: np.ndarray, passes: int, seed: int, fused: bool) -> Callable[[], Any]:
    """A call that trains the same network from the same start, and returns jaxem's params of it."""
    import torch
    from torch import nn

    device = "cuda" if torch.cuda.is_available() and jax.default_backend() != "cpu" else "cpu"
    data = torch.as_tensor(x, device=device)

    # jaxem's decoder starts from the columns' own log-odds, which here are a part of the last bias.
    log_odds = torch.as_tensor(np.array(params["likelihood"].centre), device=device)

    def network(layers: Any) -> Any:
        linear = [nn.Linear(*layer["w"].shape) for layer in layers]
        for module, layer in zip(linear, layers, strict=True):
            module.weight.data = torch.as_tensor(np.array(layer["w"]).T.copy())
            module.bias.data = torch.as_tensor(np.array(layer["b"]))
        return nn.Sequential(linear[0], nn.ReLU(), linear[1]).to(device)

    def layers(module: Any) -> Any:
        found = [part for part in module if isinstance(part, nn.Linear)]
        numpy = lambda tensor: jnp.asarray(tensor.detach().cpu().numpy())
        return [{"w": numpy(part.weight).T, "b": numpy(part.bias)} for part in found]

    def train() -> Any:
        torch.manual_seed(seed)
        encoder, decoder = network(params["encoder"]), network(params["decoder"])
        decoder[-1].bias.data += log_odds
        weights = [*encoder.parameters(), *decoder.parameters()]
        optimizer = torch.optim.Adam(weights, RATE, fused=fused)
        for _ in range(passes):
            order = torch.randperm(len(data), device=device)
            for first in range(0, len(data), BATCH):
                batch = data[order[first : first + BATCH]]
                mean, log_variance = encoder(batch).chunk(2, 1)
                z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
                loss = nn.functional.binary_cross_entropy_with_logits(decoder(z), batch, reduction="sum")
                loss = loss - 0.5 * torch.sum(1 + log_variance - mean**2 - log_variance.exp())
                optimizer.zero_grad()
                (loss / len(batch)).backward()
                optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        decoder[-1].bias.data -= log_odds
        return params | {"encoder": layers(encoder), "decoder": layers(decoder)}

    return train


def training_case(size: str, repeats: int) -> dict[str, Any]:
    """Rows a second in training, and the held-out ELBO of every seed."""
    rows, *lengths, seeds = TRAINING[size]
    x, held_out = enlarged_digits(rows, 0), jnp.asarray(enlarged_digits(2_000 if size != "toy" else 200, 1))
    data, weights = jnp.asarray(x), jnp.ones(rows)
    model = jaxem.VAE(mlp(HIDDEN, 2 * LATENT), mlp(HIDDEN, PIXELS), latent_dim=LATENT)
    starts = [model.init(jax.random.key(seed), data, weights) for seed in range(seeds)]

    def ours(passes: int, seed: int) -> Callable[[], Any]:
        algorithm = jaxem.GradientAscent(batch_size=BATCH, learning_rate=RATE, num_passes=passes)
        options = {"key": jax.random.key(seed), "params": starts[seed], "stop": NEVER, "max_steps": 1}
        return _timing.strict(lambda: jaxem.fit(model, data, algorithm=algorithm, **options).params)

    peers = {"PyTorch": False, "PyTorch, fused": True} if _timing.installed(PEERS) else {}
    theirs = lambda fused: lambda passes, seed: torch_training(starts[seed], x, passes, seed, fused)
    use = {"jaxem": ours} | {name: theirs(fused) for name, fused in peers.items()}
    calls = {f"{name} {passes}": train(passes, 0) for name, train in use.items() for passes in lengths}
    timings, contenders = _timing.interleave(calls, repeats, list(calls)), {}
    for name, train in use.items():
        short, long = (timings[f"{name} {passes}"] for passes in lengths)
        found = [long.result, *(train(lengths[1], seed)() for seed in range(1, seeds))]
        elbo = [float(model.elbo(params, held_out, key=jax.random.key(9)).mean()) for params in found]
        each = [(b - a) / (lengths[1] - lengths[0]) for a, b in zip(short.turns, long.turns, strict=True)]
        contenders[name] = {
            "rows_per_s": rows / statistics.median(each),
            "seconds": long.median,
            "compile_s": long.compile,
            "elbo": float(np.mean(elbo)),
            "error": float(np.std(elbo, ddof=1) / np.sqrt(seeds)),
        }
    title = f"{PIXELS}-{HIDDEN}-{LATENT}, {rows} rows, batches of {BATCH}, {lengths[1]} passes, float32, {seeds} seeds"
    print(title)
    own, table = contenders["jaxem"], []
    for name, c in contenders.items():
        c["ratio"], c["ratio_whole"] = own["rows_per_s"] / c["rows_per_s"], c["seconds"] / own["seconds"]
        compile_s = c["compile_s"] if name == "jaxem" else "-"
        shown = f"{c['elbo']:.3f} +- {c['error']:.3f}"
        table.append([name, c["rows_per_s"], c["ratio"], c["seconds"], c["ratio_whole"], compile_s, shown])
    head = ["", "training rows/s", "ratio", "whole run s", "ratio", "compile s", "held-out ELBO"]
    _timing.show(head, table)
    noise = lambda c: 4 * float(np.hypot(c["error"], own["error"])) + 0.2
    agree = all(abs(c["elbo"] - own["elbo"]) < noise(c) for c in contenders.values())
    print("" if agree else "  DISAGREE\n")
    return {"case": title, "agree": agree, "contenders": contenders}


def seeds_case(size: str, repeats: int) -> dict[str, Any]:
    """Seconds of all seeds in one program, some widths, and one after the other."""
    from sklearn.datasets import load_digits

    rows, passes, seeds = SEEDS[size]
    data = jnp.asarray(load_digits().data[:rows], jnp.float32)
    model = jaxem.VAE(mlp(256, 32), mlp(256, 64), latent_dim=16, likelihood=Binomial(16))
    algorithm = jaxem.GradientAscent(batch_size=BATCH, learning_rate=RATE, num_passes=passes)
    options = {"algorithm": algorithm, "stop": NEVER, "max_steps": 1}
    together = lambda width: (
        jaxem.fit(
            model, data, key=jax.random.key(0), num_restarts=seeds, restart_batch=width, **options
        ).restarts.elbo.total
    )
    one = lambda seed: jaxem.fit(model, data, key=jax.random.key(seed), **options).elbo.total
    calls = {"jaxem": lambda: together(seeds)} | {
        f"{w} at a time": lambda w=w: together(w) for w in (4, 1) if w < seeds
    }
    calls["one after the other"] = lambda: jnp.stack([one(seed) for seed in range(seeds)])
    timings = _timing.interleave({name: _timing.strict(call) for name, call in calls.items()}, repeats, list(calls))
    contenders = {}
    for name, timing in timings.items():
        elbo = np.asarray(timing.result) / rows
        ratio = timing.median / timings["jaxem"].median
        contenders[name] = {
            "seconds": timing.median,
            "ratio": ratio,
            "elbo": float(elbo.mean()),
            "spread": float(elbo.std()),
        }
    title = f"64-256-16 on the digits, {rows} rows, batches of {BATCH}, {passes} passes, {seeds} seeds side by side"
    print(title)
    rows_shown = [[n, c["seconds"], c["ratio"], f"{c['elbo']:.3f} ({c['spread']:.3f})"] for n, c in contenders.items()]
    _timing.show(["", "seconds", "ratio", "ELBO (spread)"], rows_shown)
    own = contenders["jaxem"]
    agree = all(abs(c["elbo"] - own["elbo"]) < 4 * own["spread"] + 0.2 for c in contenders.values())
    print("" if agree else "  DISAGREE\n")
    return {"case": title, "agree": agree, "contenders": contenders}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the cases, prints tables and returns the report."""
    args = _timing.arguments(__doc__.splitlines()[0], argv)
    report: dict[str, Any] = {"benchmark": "vae", **_timing.environment(), "cases": []}
    _timing.header("Variational autoencoders", report)
    for name, run in (("training", training_case), ("seeds", seeds_case)):
        if args.only in name:
            with jax.enable_x64(False), _timing.quiet_peers():
                report["cases"].append(run(args.sizes, args.repeats))
    return _timing.finish(report, args.json)


if __name__ == "__main__":
    sys.exit(not main()["agree"])
