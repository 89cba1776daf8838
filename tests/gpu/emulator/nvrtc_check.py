"""Compiles CUDA C++ sources with NVIDIA's own NVRTC, and assembles them, on a machine without a GPU.

    pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 nvidia-cuda-nvcc-cu12
    python nvrtc_check.py sm_90a FILE.cu …

Prints, for each kernel, its registers, stack and spills as ptxas tells them; ends with 1 if one does not compile.
"""

import ctypes
import glob
import os
import re
import subprocess
import sys
import tempfile


def wheel(part):
    import nvidia

    return os.path.join(list(nvidia.__path__)[0], part)


def ptx(nvrtc, source, arch, include):
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, None, 0, None, None)
    options = [f"--gpu-architecture={arch.replace('sm', 'compute')}", f"--include-path={include}", "-lineinfo"]
    options = [option.encode() for option in options]
    code = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    if code != 0:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise ValueError(log.value.decode())
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, text)
    return text.value


def main():
    arch, files = sys.argv[1], sys.argv[2:]
    nvrtc = ctypes.CDLL(glob.glob(wheel("cuda_nvrtc/lib/libnvrtc.so*"))[0])
    bad = 0
    for path in files:
        with open(path, "rb") as file:
            source = file.read()
        try:
            text = ptx(nvrtc, source, arch, wheel("cuda_runtime/include"))
        except ValueError as error:
            bad += 1
            print(f"{path}: {error}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            name = os.path.join(folder, "kernel.ptx")
            with open(name, "wb") as file:
                file.write(text)
            command = [wheel("cuda_nvcc/bin/ptxas"), "-v", f"-arch={arch}", "-o", os.devnull, name]
            told = subprocess.run(command, capture_output=True, text=True)
            bad += told.returncode != 0
            facts = re.findall(r"entry function '(\w+)'|(\d+ bytes stack.*)|(Used .*)", told.stderr)
            print(os.path.basename(path), *("".join(fact) for fact in facts), "" if facts else told.stderr, sep="\n  ")
    sys.exit(bad > 0)


main()
