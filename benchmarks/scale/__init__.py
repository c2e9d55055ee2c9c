"""Sets of millions of clips: python -m benchmarks.scale"""
