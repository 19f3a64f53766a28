"""Operators that transformers lacks, as plain differentiable tensor code. One file each."""
