"""The same shape in PyTorch: FLUX's blocks with random weights, eager and compiled. Prints one JSON object, in the form of
`dg-bench gpu`. Needs torch alone."""

import argparse
import json
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

WIDTH_OF_HEAD = 128


def norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def rotate(x, cos, sin):
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class Heads(nn.Module):
    """q, k and v of a stream, normalised and rotated."""

    def __init__(self, width):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = nn.RMSNorm(WIDTH_OF_HEAD, 1e-6), nn.RMSNorm(WIDTH_OF_HEAD, 1e-6)

    def forward(self, x, cos, sin):
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, WIDTH_OF_HEAD)).permute(2, 0, 3, 1, 4)
        return rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin), v


def attend(q, k, v):
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Stream(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.heads, self.out = Heads(width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))


class Double(nn.Module):
    """A block with a stream of its own for the text."""

    def __init__(self, width):
        super().__init__()
        self.text, self.image = Stream(width), Stream(width)

    def forward(self, text, image, steering, cos, sin):
        parts, streams, begin = [], ((self.text, text), (self.image, image)), 0
        for stream, x in streams:
            m = stream.modulation(F.silu(steering)).unsqueeze(1).chunk(6, -1)
            end = begin + x.shape[1]
            parts.append((m, stream.heads(norm(x) * (1 + m[1]) + m[0], cos[begin:end], sin[begin:end])))
            begin = end
        together = [torch.cat([heads[i] for _, heads in parts], 2) for i in range(3)]
        attended = attend(*together).split([text.shape[1], image.shape[1]], 1)
        done = []
        for (stream, x), (m, _), a in zip(streams, parts, attended):
            x = x + m[2] * stream.out(a)
            done.append(x + m[5] * stream.mlp(norm(x) * (1 + m[4]) + m[3]))
        return done


class Single(nn.Module):
    """A block with one stream for both."""

    def __init__(self, width):
        super().__init__()
        self.modulation, self.heads = nn.Linear(width, 3 * width), Heads(width)
        self.into, self.out = nn.Linear(width, 4 * width), nn.Linear(5 * width, width)

    def forward(self, x, steering, cos, sin):
        shift, scale, gate = self.modulation(F.silu(steering)).unsqueeze(1).chunk(3, -1)
        y = norm(x) * (1 + scale) + shift
        wide = F.gelu(self.into(y), approximate="tanh")
        return x + gate * self.out(torch.cat((attend(*self.heads(y, cos, sin)), wide), -1))


class Flux(nn.Module):
    def __init__(self, heads, doubles, singles, channels=64, text_width=4096):
        super().__init__()
        width = heads * WIDTH_OF_HEAD
        self.image_in, self.text_in = nn.Linear(channels, width), nn.Linear(text_width, width)
        self.doubles = nn.ModuleList(Double(width) for _ in range(doubles))
        self.singles = nn.ModuleList(Single(width) for _ in range(singles))
        self.modulation, self.out = nn.Linear(width, 2 * width), nn.Linear(width, channels)

    def forward(self, image, text, steering, cos, sin):
        image, text = self.image_in(image), self.text_in(text)
        for block in self.doubles:
            text, image = block(text, image, steering, cos, sin)
        x = torch.cat((text, image), 1)
        for block in self.singles:
            x = block(x, steering, cos, sin)
        scale, shift = self.modulation(F.silu(steering)).unsqueeze(1).chunk(2, -1)
        return self.out(norm(x[:, text.shape[1] :]) * (1 + scale) + shift)


def timed(model, inputs, device, steps):
    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        begin = time.perf_counter()
        model(*inputs)
        wait()
        first = time.perf_counter() - begin
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            for _ in range(steps):
                out = model(*inputs)
            wait()
            times.append((time.perf_counter() - begin) / steps)
    return statistics.median(times), first, bool(torch.isfinite(out).all())


def row(name, state, detail, numbers=None):
    return {"name": name, "state": state, "detail": detail, "numbers": numbers}


class Part:
    """What was found so far, also in a file for when this process is cut off."""

    def __init__(self, device, file):
        self.device, self.file, self.rows = device, file, []

    def object(self):
        good = all(r["state"] != "bad" for r in self.rows)
        return {"part": "peer", "device": self.device, "good": good, "rows": self.rows}

    def put(self, *a):
        self.rows.append(row(*a))
        if self.file:
            with open(self.file + ".new", "w") as f:
                json.dump({**self.object(), "good": False, "cut_off": True}, f)
            os.replace(self.file + ".new", self.file)

    def fail(self, name, error):
        self.put(name, "bad", f"{type(error).__name__}: {error}"[:400])


def set_up(device):
    """The model, its inputs, and the operations of a step."""
    small = device == "cpu"
    heads, doubles, singles = (4, 1, 2) if small else (24, 19, 38)
    image_tokens, text_tokens = (64, 64) if small else (4096, 512)
    text_width = 256 if small else 4096
    if device == "cuda":
        # Made on the device: 24 GB do not have to fit the host.
        torch.set_default_device("cuda")
    torch.manual_seed(1)
    torch.set_default_dtype(torch.bfloat16)
    model = Flux(heads, doubles, singles, text_width=text_width).eval()
    width, tokens = heads * WIDTH_OF_HEAD, image_tokens + text_tokens
    angle = torch.randn(tokens, WIDTH_OF_HEAD // 2, dtype=torch.float32)
    inputs = (
        torch.randn(1, image_tokens, 64),
        torch.randn(1, text_tokens, text_width),
        torch.randn(1, width),
        angle.cos(),
        angle.sin(),
    )
    flop = (doubles + singles) * (24.0 * width * width * tokens + 4.0 * tokens * tokens * width)
    return model, inputs, flop


def compiled(model):
    """Block by block: all of a kind share one compilation; that of the whole model takes minutes."""
    for blocks in (model.doubles, model.singles):
        for i, block in enumerate(list(blocks)):
            blocks[i] = torch.compile(block)
    return model


def peak():
    """Operations per second of a large product in bfloat16."""
    n = 8192
    with torch.inference_mode():
        a, b = torch.randn(n, n), torch.randn(n, n)
        times = []
        for _ in range(10):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            torch.mm(a, b)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
    return 2.0 * n**3 / statistics.median(times)


def measure(part, steps):
    try:
        model, inputs, flop = set_up(part.device)
    except Exception as error:  # an old torch lacks a layer, or there is no room
        return part.fail("start", error)
    for name, make in [("eager", lambda: model), ("compiled", lambda: compiled(model))]:
        if name == "compiled" and part.device == "cpu":
            part.put(name, "told", "not on a CPU")
            continue
        try:
            step, first, finite = timed(make(), inputs, part.device, steps)
        except Exception as error:  # a peer that fails is a row, not the end
            part.fail(name, error)
            continue
        rate = flop / step * 1e-12
        detail = f"{step * 1e3:.1f} ms a step, {rate:.2f} TFLOP/s, first {first:.1f} s"
        numbers = {"ms_per_step": step * 1e3, "tflop_per_s": rate, "first_s": first}
        part.put(name, "told" if finite else "bad", detail, numbers)
        if name == "eager" and part.device == "cuda":
            most = torch.cuda.max_memory_allocated()
            part.put("memory", "told", f"{most / 2**30:.2f} GiB at most", {"bytes": most})
            try:
                best = peak() * 1e-12
                part.put("peak", "told", f"{best:.0f} TFLOP/s, 8192³ in bfloat16", {"tflop_per_s": best})
            except Exception as error:
                part.fail("peak", error)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rows", help="a file that has all rows so far")
    args = parser.parse_args()
    part = Part(args.device, args.rows)
    part.put("torch", "told", torch.__version__, {"version": torch.__version__})
    measure(part, args.steps)
    print(json.dumps(part.object()))
    return 0 if part.object()["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
