"""Models how long the CUDA kernels take on a GPU, from what they ask of it (docs/gpu_model.md)."""
