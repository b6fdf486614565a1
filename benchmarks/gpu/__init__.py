"""The stages of gpu_check.py: building, testing and measuring on a machine with a GPU, in one command."""
