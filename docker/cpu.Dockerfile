# LightRFT without a GPU: FSDP2, DeepSpeed, the engine hf. From the repository's root:
#
#     docker build --file docker/cpu.Dockerfile --tag lightrft:cpu .
#     docker run --rm --shm-size 2g lightrft:cpu demo
#
# pip's torch brings CUDA along; --build-arg PIP_EXTRA_INDEX_URL=... with torch's index of CPU builds makes a far smaller image.
FROM python:3.12-slim
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore DS_BUILD_OPS=0

# A compiler, for torch.compile.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/lightrft
COPY packages packages
COPY examples/plugin-template examples/plugin-template
RUN pip install "./packages/core[plot,math,lora,datasets,tensorboard]" ./packages/backend-fsdp ./packages/backend-deepspeed

COPY examples examples
RUN useradd --create-home trainer
USER trainer
WORKDIR /home/trainer
ENTRYPOINT ["lightrft"]
CMD ["--help"]
