# LightRFT on NVIDIA GPUs with SGLang: FSDP2, DeepSpeed, the engines sglang and hf. From the repository's root:
#
#     docker build --file docker/cuda-sglang.Dockerfile --tag lightrft:sglang .
#     docker run --rm --gpus all --ipc host --volume "$PWD:/work" --workdir /work lightrft:sglang train --config recipe.yaml
#
# Neither this image nor the engine sglang on CUDA has been run yet.
#
# CUDA comes with pip's torch; the base image brings its compiler, for kernels that are built on the spot. Another base: --build-arg BASE=...
ARG BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04
FROM ${BASE}
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore DEBIAN_FRONTEND=noninteractive DS_BUILD_OPS=0 PATH=/opt/venv/bin:$PATH

RUN apt-get update && apt-get install --yes --no-install-recommends g++ git python3-dev python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv

WORKDIR /opt/lightrft
COPY packages packages
COPY examples/plugin-template examples/plugin-template
RUN pip install "./packages/core[plot,math,lora,datasets,tensorboard]" ./packages/backend-fsdp ./packages/backend-deepspeed "./packages/engine-sglang[runtime]"

COPY examples examples
RUN useradd --create-home trainer
USER trainer
WORKDIR /home/trainer
ENTRYPOINT ["lightrft"]
CMD ["--help"]
