"""Own kernels behind ``attention``: Pallas for TPUs and GPUs; imported only where they run."""
