"""Packs vLLM for a GPU machine that has no package index and takes 64 MiB at a time. As two archives of what its own torch lacks.

`make gpu-vllm` fills `.build/gpu-vllm-1` and `.build/gpu-vllm-2`. There, one call after the other, unpack each into the folder of
`make gpu-test` (`GPU_SITE`), and run the tests. It is the vLLM that was built for that machine's torch (2.11); dense models only,
and without flashinfer (`make gpu-test` tells vLLM so).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

VLLM = "vllm==0.25.1"
NEEDS = (
    "httpx2==2.16.2", "partial-json-parser==0.2.1.1.post7", "uvicorn==0.54.0", "watchfiles==1.3.0", "fastapi==0.136.3",
    "pybase64==1.5.1", "pyzmq==27.3.0", "starlette==1.10.0", "apache-tvm-ffi==0.1.9", "openai-harmony==0.0.8", "jmespath==1.1.0",
    "sniffio==1.3.1", "setproctitle==1.3.8", "msgspec==0.22.0", "xgrammar==0.2.1", "openai==3.54.0", "cachetools==8.0.1", "cbor2==6.3.0",
    "model-hosting-container-standards==0.1.16", "llguidance==1.7.6", "pydantic==2.14.3", "pydantic_core==2.50.4",
    "annotated-types==0.8.0", "typing-inspection==0.4.5", "blake3==1.0.11", "compressed-tensors==0.17.0", "loguru==0.7.3",
)  # fmt: skip
"""What vLLM imports and a machine set up for torch and transformers lacks, in versions that were seen to work together."""

FIRST = "vllm/_C_stable_libtorch.abi3.so"
UNUSED = (
    "vllm/_moe_C_stable_libtorch.abi3.so", "vllm/vllm-rs", "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",
    "vllm/third_party/fmha_sm100/cutlass",
)  # fmt: skip
"""Kernels of expert models and of GPUs before Hopper, and a server of its own."""

PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17, 12, 5)), "manylinux2014_x86_64", "any")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the archives go to FOLDER-1 and FOLDER-2")
    folder = parser.parse_args().folder.absolute()
    work = folder.with_name(f"{folder.name}-work")
    shutil.rmtree(work, ignore_errors=True)
    site = work / "site"
    site.mkdir(parents=True)
    tags = [word for platform in PLATFORMS for word in ("--platform", platform)]
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version", "3.12"]
    subprocess.run([*download, *tags, "--dest", str(work / "wheels"), VLLM, *NEEDS], check=True)
    for wheel in (work / "wheels").glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(site)
    strip(site)
    pack(site, folder.with_name(f"{folder.name}-1"), [FIRST], [])
    pack(site, folder.with_name(f"{folder.name}-2"), ["."], [f"--exclude={FIRST}"])
    shutil.rmtree(work)


def strip(site: Path) -> None:
    for name in UNUSED:
        path = site / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    others = [p for p in site.glob("vllm/third_party/deep_gemm/**/_C.cpython-3*") if "312" not in p.name]
    for path in [*site.glob("*.data"), *site.glob("xgrammar/**/*.a"), *others]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def pack(site: Path, folder: Path, what: list[str], options: list[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    archive = folder / "vllm.tar.xz"
    subprocess.run(["tar", "--create", "--use-compress-program=xz -3 -T2", "--file", archive, *options, *what], cwd=site, check=True)
    print(f"{archive}: {archive.stat().st_size / 2**20:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
