"""Ours against diffusers on PyTorch CPU: same weights, same shapes, same threads, interleaved.

    cargo build --release --workspace
    python crates/dg-bench/peers/diffusers_bench.py --with ours --preset medium --threads 2 \
        [--dtype bfloat16] [--peer-dtype float32] [dit vae text attention e2e]

Needs torch, diffusers and transformers in the Python that runs it. Prints one JSON line per
benchmark and a table: medians of wall and CPU seconds, and ours / diffusers. A run of ours and one
of diffusers alternate, so that what else the machine does meets both. Each run of ours is a fresh process
that first does the work once without a clock; diffusers keeps its process and does the same. `--with none` times
diffusers alone.
"""
import argparse, json, math, os, resource, statistics, subprocess, sys, tempfile, time

PARTS = ("attention", "dit", "vae", "text", "e2e")


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("parts", nargs="*", default=list(PARTS))
    p.add_argument("--with", dest="side", choices=("ours", "none"), default="ours", help="what runs beside diffusers")
    p.add_argument("--preset", default="medium", help="size of the random model, see dg-bench --help")
    p.add_argument("--bin", default="target/release")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of both sides")
    p.add_argument("--peer-dtype", choices=("float32", "bfloat16"), help="of diffusers, if it is faster in another one")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--attention", default="24x128x4608,8x128x1536,4x32x200", help="heads x head dim x tokens")
    p.add_argument("--sides", default="512", help="widths of the VAE's pictures, e.g. 512,1024")
    p.add_argument("--tokens", default="1024+512", help="image + text tokens of dit")
    p.add_argument("--text_tokens", type=int, default=512)
    p.add_argument("--e2e_model", help="a small model folder with all tokenizer files, for the cold start")
    p.add_argument("--e2e_size", type=int, default=512, help="width and height of the cold start's picture")
    p.add_argument("--e2e_steps", type=int, default=4)
    a = p.parse_args()
    a.model = os.path.join(os.environ.get("CARGO_TARGET_DIR", "target"), "bench-models", a.preset)
    if not os.path.exists(os.path.join(a.model, "model_index.json")):
        subprocess.run([os.path.join(a.bin, "dg-bench"), "make", a.model, "--preset", a.preset], check=True)
    a.peer_dtype = a.peer_dtype or a.dtype
    return a


def ours(a, part, *more):
    if a.side == "none":
        return float("nan"), float("nan"), {}
    command = [os.path.join(a.bin, "dg-bench"), part, "--json", "--preset", a.preset, "--threads", str(a.threads),
               "--dtype", a.dtype, "--repeats", "1", "--warm-up", "1"]
    out = json.loads(subprocess.run(command + list(more), check=True, capture_output=True, text=True).stdout)
    return out["wall_s"]["median"], out["cpu_s"]["median"], out


def timed(work):
    """Wall and CPU seconds; work that measures itself returns its own."""
    wall, cpu = time.perf_counter(), time.process_time()
    own = work()
    here = time.perf_counter() - wall, time.process_time() - cpu
    return own if isinstance(own, tuple) and all(isinstance(x, float) for x in own) else here


def compare(a, name, our_run, peer_run):
    """Alternates and prints medians."""
    peer_run()
    rows = {"ours": [], "peer": []}
    fractions, memory = [], 0
    for _ in range(a.repeats):
        wall, cpu, facts = our_run()
        rows["ours"].append((wall, cpu))
        fractions.append(facts.get("fraction_of_peak"))
        memory = max(memory, facts.get("peak_rss_bytes", 0))
        rows["peer"].append(timed(peer_run))
    median = {k: [statistics.median(x[i] for x in v) for i in (0, 1)] for k, v in rows.items()}
    line = {
        "bench": name, "threads": a.threads, "dtype": a.dtype, "peer_dtype": a.peer_dtype, "cpu": facts.get("cpu"), "kernels": facts.get("kernels"),
        "ours_wall_s": median["ours"][0], "peer_wall_s": median["peer"][0],
        "ours_cpu_s": median["ours"][1], "peer_cpu_s": median["peer"][1],
        "fraction_of_peak": statistics.median(fractions) if all(fractions) else None,
        "ours_peak_rss_mb": memory / 1e6, "peer_peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "wall_ratio": median["ours"][0] / median["peer"][0], "cpu_ratio": median["ours"][1] / median["peer"][1],
    }
    print(json.dumps(line), flush=True)
    return line


def main():
    a = arguments()
    import torch
    torch.set_num_threads(a.threads)
    torch.set_grad_enabled(False)
    dtype = getattr(torch, a.peer_dtype)
    randn = lambda *shape: torch.randn(*shape).to(dtype)
    lines = []
    part = lambda name: os.path.join(a.model, name)
    if "attention" in a.parts:
        for shape in a.attention.split(","):
            h, d, n = (int(x) for x in shape.split("x"))
            q, k, v = (randn(1, h, n, d) for _ in range(3))
            peer = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)
            run = lambda: ours(a, "attention", "--heads", str(h), "--head-dim", str(d), "--tokens", str(n))
            lines.append(compare(a, f"attention {shape}", run, peer))
    if "dit" in a.parts:
        from diffusers import FluxTransformer2DModel
        model = FluxTransformer2DModel.from_pretrained(part("transformer"), torch_dtype=dtype).eval()
        n, t = (int(x) for x in a.tokens.split("+"))
        side = math.ceil(math.sqrt(n))
        ids = torch.tensor([[0.0, i // side, i % side] for i in range(n)], dtype=dtype)
        inputs = dict(hidden_states=randn(1, n, 64), encoder_hidden_states=randn(1, t, 512),
                      pooled_projections=randn(1, 768), timestep=torch.tensor([0.8], dtype=dtype),
                      guidance=torch.tensor([3.5], dtype=dtype), img_ids=ids, txt_ids=torch.zeros(t, 3, dtype=dtype),
                      return_dict=False)
        run = lambda: ours(a, "dit", "--image-tokens", str(n), "--text-tokens", str(t))
        lines.append(compare(a, f"dit {a.preset}, {n} + {t} tokens", run, lambda: model(**inputs)))
    if "vae" in a.parts:
        from diffusers import AutoencoderKL
        vae = AutoencoderKL.from_pretrained(part("vae"), torch_dtype=dtype).eval()
        for side in a.sides.split(","):
            z = randn(1, 16, int(side) // 8, int(side) // 8)
            run = lambda: ours(a, "vae", "--side", side)
            lines.append(compare(a, f"vae {side}x{side}", run, lambda: vae.decode(z)))
    if "text" in a.parts:
        from transformers import CLIPTextModel, T5EncoderModel
        clip = CLIPTextModel.from_pretrained(part("text_encoder"), torch_dtype=dtype).eval()
        t5 = T5EncoderModel.from_pretrained(part("text_encoder_2"), torch_dtype=dtype).eval()
        ids = lambda n: torch.tensor([[i * 7919 % 1000 for i in range(n)]])
        peer = lambda: (clip(ids(77)), t5(ids(a.text_tokens)))
        run = lambda: ours(a, "text", "--tokens", str(a.text_tokens))
        lines.append(compare(a, f"text 77 + {a.text_tokens} tokens", run, peer))
    if "e2e" in a.parts and a.e2e_model:
        lines.append(cold(a))
    table(lines)


PIPELINE = """
import json, os, sys, torch
torch.set_num_threads(int(sys.argv[2]))
from diffusers import FluxPipeline
p = FluxPipeline.from_pretrained(sys.argv[1], torch_dtype=getattr(torch, sys.argv[6]))
p.set_progress_bar_config(disable=True)
size, steps = int(sys.argv[4]), int(sys.argv[5])
# what ours takes as the model's defaults
own = os.path.join(sys.argv[1], "generation_config.json")
own = json.load(open(own)) if os.path.exists(own) else {}
own = {k: v for k, v in own.items() if k in ("guidance_scale", "true_cfg_scale", "negative_prompt", "max_sequence_length")}
p("two porcelain teacups on a wooden table", height=size, width=size, num_inference_steps=steps, **own,
  generator=torch.Generator("cpu").manual_seed(0)).images[0].save(sys.argv[3])
"""


def cold(a):
    """From exec to the picture on disk, both in fresh processes; CPU seconds are the child's."""
    folder, size, steps = tempfile.mkdtemp(), str(a.e2e_size), str(a.e2e_steps)
    peer = [sys.executable, "-c", PIPELINE, a.e2e_model, str(a.threads), os.path.join(folder, "peer.png"), size, steps,
            a.peer_dtype]
    us = [os.path.join(a.bin, "diffgentor"), "t2i", "--model_name", a.e2e_model, "--no_resume", "--quiet",
          "--prompt", "two porcelain teacups on a wooden table", "--seed", "0", "--height", size, "--width", size,
          "--num_inference_steps", steps, "--threads", str(a.threads), "--dtype", a.dtype,
          "--output_dir", folder]
    return compare(a, f"cold start to picture, {size}x{size}, {steps} steps", lambda: (*child(us), {}), lambda: child(peer))


def child(command):
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(lines):
    print("\n| work | threads | ours wall s | diffusers wall s | ratio | ours CPU s | diffusers CPU s | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for l in lines:
        print("| {bench} | {threads} | {ours_wall_s:.3f} | {peer_wall_s:.3f} | {wall_ratio:.2f} | {ours_cpu_s:.3f} "
              "| {peer_cpu_s:.3f} | {cpu_ratio:.2f} |".format(**l))


if __name__ == "__main__":
    main()
