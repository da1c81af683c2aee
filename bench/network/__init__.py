"""Data-parallel training on emulated networks: a namespace a worker, real TCP, shaped links."""
