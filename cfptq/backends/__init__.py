"""Hand-over of plans to deployment toolchains, one file a toolchain.

Each file imports its toolchain itself, so that the others work without it. Its ``quantize_by_default`` is the toolchain's own
quantization, and ``cfptq.backends.toolchains`` registers it under a name.
"""
