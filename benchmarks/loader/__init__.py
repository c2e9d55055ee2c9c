"""The loader benchmark: python -m benchmarks.loader"""
